"""A checkpoint with all that belongs to it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from autovla_rt.config import ActionSpace, Geometry, Preprocessing, Recipe
from autovla_rt.export.checkpoint import Checkpoint
from autovla_rt.export.progress import Progress
from autovla_rt.export.weight_source import ModelWeights


@dataclass(frozen=True)
class OpenedModel:
    """An opened checkpoint with all that belongs to it.

    `base` is the Hugging Face folder that config and tokenizer were read from.
    """

    checkpoint: Checkpoint
    geometry: Geometry
    tokenizer: Tokenizer
    end_token_ids: tuple[int, ...]
    preprocessing: Preprocessing
    actions: ActionSpace
    codebook: NDArray[np.float32]
    recipe: Recipe
    use_cot: bool
    base: Path

    def weights(self, progress: Progress | None = None) -> ModelWeights:
        """Return the checkpoint's weights; `progress` counts what is read."""
        return ModelWeights(
            self.checkpoint,
            tied=self.geometry.language.tie_word_embeddings,
            action_start_id=self.actions.action_start_id,
            progress=progress,
        )
