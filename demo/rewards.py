"""What reinforcement rewards: driving well and like the expert, less a penalty on reasoning."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from autovla_rt.demo.road import Array
from autovla_rt.demo.score import Score
from autovla_rt.demo.tracking import DT

NEAR, NEAR_GROWTH = 0.1, 0.15
"""How far from the expert is near: NEAR m at once, NEAR_GROWTH m more after t = 1 s, times t²."""
CONSTANT = 1e-6
"""Rewards whose deviation within a group is below this are one value."""


@dataclass(frozen=True)
class RewardSettings:
    """What an answer is worth.

    reward = (1 - imitation) * score * (red light not crossed) + imitation * nearness
             - weight * sigmoid((tokens - centre) / width)

    The score is the world's PDM-like one (score.py), the red light a factor as in NAVSIM v2's
    extended score. AutoVLA (arXiv 2506.13757, section on reinforcement fine-tuning) rewards such a
    score on nuPlan and displacement from the human's drive on Waymo, and has the same penalty.
    Here both are needed: the score alone does not tell a plan that begins to brake a little late
    from the right one, and a drive is made of beginnings (measured: bench/README.md).

    Attributes:
        imitation: Share of nearness to the expert in the reward of driving.
        weight: Of the penalty.
        centre: Reasoning tokens at which half of it is due.
        width: Tokens below and above the centre at which 27 % and 73 % of it are due.
    """

    imitation: float = 0.7
    weight: float = 0.3
    centre: float = 20.0
    width: float = 6.0

    def reward(self, score: Score, nearness: float, thinking_tokens: int) -> float:
        """Return the reward of an answer."""
        legal = 0.0 if score.red_light else score.score
        driving = (1 - self.imitation) * legal + self.imitation * nearness
        return driving - self.penalty(thinking_tokens)

    def penalty(self, thinking_tokens: int) -> float:
        """Return what reasoning of so many tokens costs."""
        return self.weight / (1 + math.exp((self.centre - thinking_tokens) / self.width))


def nearness(trajectory: Array, expert: Array) -> float:
    """Return how near a plan [n, 3] is to the expert's, from 0 to 1.

    The mean over the poses of exp(-distance / near), where near grows with time as the distance
    of plans does that begin with different accelerations.
    """
    time = DT * np.arange(1, len(expert) + 1)
    distance = np.hypot(*(trajectory - expert)[:, :2].T)
    return float(np.exp(-distance / (NEAR + NEAR_GROWTH * time**2)).mean())


@dataclass(frozen=True)
class Advantages:
    """What the answers to one scene are worth beside each other.

    Attributes:
        values: float64 [G]; 0 for an answer that teaches nothing.
        invalid: Answers whose reward was not a number; they are left out.
        constant: Whether the other rewards were all the same, so that nothing is to be learnt.
    """

    values: NDArray[np.float64]
    invalid: int
    constant: bool


def advantages(rewards: Sequence[float], least_deviation: float) -> Advantages:
    """Normalise the rewards of a group: (reward - mean) / max(deviation, least_deviation).

    GRPO (Shao et al. 2024, DeepSeekMath, section 4.1) divides by the deviation alone, which makes
    the same of a collision and of a centimetre: `least_deviation` keeps small differences small.
    """
    values = np.asarray(rewards, np.float64)
    usable = np.isfinite(values)
    invalid = int(values.size - usable.sum())
    result = np.zeros(values.size)
    kept = values[usable]
    deviation = float(kept.std()) if kept.size > 1 else 0.0
    if deviation < CONSTANT:
        return Advantages(result, invalid, constant=True)
    result[usable] = (kept - kept.mean()) / max(deviation, least_deviation)
    return Advantages(result, invalid, constant=False)
