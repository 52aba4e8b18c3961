"""What a training of the miniature depends on."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autovla_rt.config import Geometry

PACE = ("save_every", "log_every", "threads", "prefetch", "compile")
"""Settings that may change between two runs of one training."""


@dataclass(frozen=True, eq=False)
class Settings:
    """Everything that a training depends on, beside its source.

    Attributes:
        geometry: shapes of the model.
        corners: [K, 4, 2] codebook in metres; its actions are the last K ids.
        action_start_id: id of the first action.
        video_token_id: placeholder of visual tokens.
        auxiliary_width: outputs of the auxiliary head by visual token.
        reasoning: whether scenes have slow answers, too.
        steps: optimisation steps of the whole training.
        peak_lr: learning rate after the warm-up, which falls along a cosine to `final_lr` of it.
        ema_decay: of the moving average of weights, which is what is exported.
        save_every: steps between two states on the disk.
        threads: of torch; the source's thread is one more.
        prefetch: steps whose batches are made in advance.
        compile: fuse kernels with inductor (needs a C++ compiler).
    """

    geometry: Geometry
    corners: NDArray[np.floating[Any]]
    action_start_id: int
    video_token_id: int
    auxiliary_width: int
    steps: int
    reasoning: bool = True
    peak_lr: float = 1e-3
    final_lr: float = 0.02
    warmup_steps: int = 200
    weight_decay: float = 0.05
    betas: tuple[float, float] = (0.9, 0.98)
    clip: float = 1.0
    ema_decay: float = 0.999
    auxiliary_weight: float = 0.2
    seed: int = 0
    save_every: int = 50
    log_every: int = 20
    threads: int = 2
    prefetch: int = 2
    compile: bool = True

    def fingerprint(self) -> str:
        """Return a sha256 of all that decides what is learnt."""
        values = {name: value for name, value in vars(self).items() if name not in PACE}
        values["geometry"] = self.geometry.model_dump()
        values["corners"] = np.asarray(self.corners, np.float64).tolist()
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()

    def lr(self, step: int) -> float:
        """Return the learning rate of a step, counted from 0."""
        if step < self.warmup_steps:
            return self.peak_lr * (step + 1) / self.warmup_steps
        progress = (step - self.warmup_steps) / max(self.steps - self.warmup_steps, 1)
        wave = 0.5 * (1 + math.cos(math.pi * progress))
        return self.peak_lr * (self.final_lr + (1 - self.final_lr) * wave)
