"""An engine for the world's cameras from a miniature's checkpoint."""

from __future__ import annotations

from pathlib import Path

from autovla_rt.config import CAMERAS
from autovla_rt.demo.drivers import FRAME_HEIGHT, FRAME_WIDTH
from autovla_rt.demo.tokenizer import RECIPE
from autovla_rt.export.build import build_engine
from autovla_rt.export.open_model import ModelFiles, open_model
from autovla_rt.export.progress import NoProgress
from autovla_rt.export.settings import Settings


def model_files(checkpoint: Path) -> ModelFiles:
    """Return where a miniature's checkpoint folder has what belongs to it."""
    return ModelFiles(checkpoint / "base", checkpoint / "config.yaml", recipe=RECIPE)


def build_world_engine(checkpoint: Path, bundle: Path, precision: str, target: str = "cpu") -> None:
    """Build a CPU engine of a checkpoint folder.

    Raises:
        CheckpointError, CodebookError: a file is missing, damaged or does not fit the others.
        StorageError: the file system refused.
    """
    sizes = dict.fromkeys(CAMERAS, (FRAME_WIDTH, FRAME_HEIGHT))
    settings = Settings(bundle.name, target, precision, frame_sizes=sizes)
    model = open_model(model_files(checkpoint))
    try:
        build_engine(model, settings, bundle, NoProgress())
    finally:
        model.checkpoint.close()
