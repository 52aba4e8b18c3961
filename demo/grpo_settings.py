"""What a reinforcement of the miniature depends on."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field

from autovla_rt.demo.rewards import RewardSettings

PACE = ("steps", "save_every", "log_every", "threads", "processes", "groups_per_batch")
"""Settings that may change between two runs of one training; more steps go on where it ended."""


@dataclass(frozen=True)
class GrpoSettings:
    """Everything that a reinforcement depends on, beside the checkpoint that it starts from.

    Attributes:
        steps: Updates; each has answers of its own, sampled with the weights before it.
        scenes_per_step: Groups of answers in an update.
        group_size: Answers sampled to each scene.
        driven_share: Share of scenes that the model's own driving leads to.
        temperature: Of the sampling.
        kl: Weight of the divergence from the checkpoint.
        least_deviation: See `rewards.advantages`.
        reward: What an answer is worth.
        lr: Learning rate after `warmup_steps`.
        ema_decay: Of the moving average of weights, which is what is exported; the weights
            themselves sample.
        save_every: Steps between two states on the disk.
        threads: Of torch.
        processes: That sample side by side, one thread each.
        groups_per_batch: Groups in a micro-batch of the update.
    """

    steps: int
    seed: int = 0
    scenes_per_step: int = 16
    group_size: int = 8
    driven_share: float = 0.75
    temperature: float = 1.0
    kl: float = 0.15
    least_deviation: float = 0.05
    reward: RewardSettings = field(default_factory=RewardSettings)
    lr: float = 5e-5
    warmup_steps: int = 10
    betas: tuple[float, float] = (0.9, 0.95)
    clip: float = 1.0
    ema_decay: float = 0.97
    save_every: int = 10
    log_every: int = 5
    threads: int = 2
    processes: int = 2
    groups_per_batch: int = 4

    def fingerprint(self, checkpoint: str) -> str:
        """Return a sha256 of all that decides what is learnt from a checkpoint (its sha256)."""
        values = {name: value for name, value in asdict(self).items() if name not in PACE}
        text = json.dumps({**values, "checkpoint": checkpoint}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def rate(self, step: int) -> float:
        """Return the learning rate of a step, counted from 0."""
        return self.lr * min(1.0, (step + 1) / self.warmup_steps)
