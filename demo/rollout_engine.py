"""The engine that samples answers: built anew from the weights of every step."""

from __future__ import annotations

from pathlib import Path

import torch

from autovla_rt.demo.model import Miniature
from autovla_rt.demo.model_weights import save_weights
from autovla_rt.demo.sft import WEIGHTS_FILE
from autovla_rt.demo.world_engine import build_world_engine
from autovla_rt.output_file import make_folder, write_file

CHECKPOINT_FILES = ("config.yaml", "codebook.safetensors", "base/*")


def copy_without_weights(checkpoint: Path, folder: Path) -> None:
    """Copy what a checkpoint has beside its weights and the files of its training.

    Raises:
        StorageError: the file system refused.
    """
    make_folder(folder / "base")
    for pattern in CHECKPOINT_FILES:
        for path in checkpoint.glob(pattern):
            if path.name != WEIGHTS_FILE:
                write_file(folder / path.relative_to(checkpoint), path.read_bytes())


class RolloutEngine:
    """Builds a float32 engine.

    Args:
        checkpoint: A checkpoint in the official layout; its weights are not used.
        folder: Empty or new.
    """

    def __init__(self, checkpoint: Path, folder: Path) -> None:
        self._checkpoint, self._bundle = folder / "checkpoint", folder / "engine"
        copy_without_weights(checkpoint, self._checkpoint)

    def build(self, model: Miniature) -> Path:
        """Build the engine of a model's present weights; returns its bundle.

        Raises:
            StorageError: the file system refused.
        """
        save_weights(model, self._checkpoint / "base" / WEIGHTS_FILE, dtype=torch.float32)
        build_world_engine(self._checkpoint, self._bundle, "fp32")
        return self._bundle
