"""The engine that samples answers: built anew from the weights of every step."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch

from autovla_rt.config import CAMERAS
from autovla_rt.demo.drivers import FRAME_HEIGHT, FRAME_WIDTH
from autovla_rt.demo.model import Miniature
from autovla_rt.demo.model_weights import save_weights
from autovla_rt.demo.sft import WEIGHTS_FILE
from autovla_rt.demo.tokenizer import RECIPE
from autovla_rt.export.build import Settings, build_engine
from autovla_rt.export.open_model import ModelFiles, open_model
from autovla_rt.export.progress import NoProgress

NAME = "rollouts"


class RolloutEngine:
    """Builds a float32 engine in a folder that holds nothing else.

    Args:
        checkpoint: A checkpoint in the official layout; its weights are not used.
        folder: Replaced.
    """

    def __init__(self, checkpoint: Path, folder: Path) -> None:
        shutil.rmtree(folder, ignore_errors=True)
        self._checkpoint, self._bundle = folder / "checkpoint", folder / "engine"
        ignored = shutil.ignore_patterns(WEIGHTS_FILE, "training*")
        shutil.copytree(checkpoint, self._checkpoint, ignore=ignored)

    def build(self, model: Miniature) -> Path:
        """Build the engine of a model's present weights; returns its bundle.

        Raises:
            StorageError: the file system refused.
        """
        base = self._checkpoint / "base"
        save_weights(model, base / WEIGHTS_FILE, dtype=torch.float32)
        files = ModelFiles(base, self._checkpoint / "config.yaml", recipe=RECIPE)
        sizes = dict.fromkeys(CAMERAS, (FRAME_WIDTH, FRAME_HEIGHT))
        opened = open_model(files)
        try:
            settings = Settings(NAME, precision="fp32", frame_sizes=sizes)
            build_engine(opened, settings, self._bundle, NoProgress())
        finally:
            opened.checkpoint.close()
        return self._bundle
