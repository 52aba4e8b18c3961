"""What the log of a reinforcement says of its steps."""

from __future__ import annotations

import math
from collections.abc import Sequence

from autovla_rt.demo.rewards import RewardSettings
from autovla_rt.demo.rollouts import STAGES, Group, Rollout


def add(sums: dict[str, float], more: dict[str, float]) -> None:
    """Add values to sums of the same names."""
    for name, value in more.items():
        sums[name] = sums.get(name, 0.0) + value


def reward_of(answer: Rollout, settings: RewardSettings) -> float:
    """Return the reward of an answer."""
    return settings.reward(answer.score, answer.nearness, answer.decoded.thinking_tokens)


def summary(groups: Sequence[Group], settings: RewardSettings) -> dict[str, float]:
    """Return sums over a step's answers; one whose reward is no number is left out."""
    sums: dict[str, float] = {}
    for group in groups:
        part = "complex" if group.complex else "straightforward"
        for rollout in group.rollouts:
            reward = reward_of(rollout, settings)
            if not math.isfinite(reward):
                continue
            values = {
                "answers": 1.0,
                f"{part}_answers": 1.0,
                f"{part}_slow": float(rollout.decoded.mode == "slow"),
                "reward": reward,
                "score": rollout.score.score,
                "nearness": rollout.nearness,
                "collisions": float(not rollout.score.no_collision),
                "off_road": float(not rollout.score.on_road),
                "red_lights": float(rollout.score.red_light),
                "thinking_tokens": float(rollout.decoded.thinking_tokens),
            }
            add(sums, values)
    return sums


def log_line(sums: dict[str, float]) -> dict[str, float]:
    """Turn sums into the means of a line of the log."""
    means = {
        "answers": (
            *("reward", "score", "nearness", "collisions", "off_road", "red_lights"),
            "thinking_tokens",
        ),
        "updated_answers": ("divergence",),
        "choices": ("engine_gap",),
        "complex_answers": ("complex_slow",),
        "straightforward_answers": ("straightforward_slow",),
        **{f"{stage}_choices": (f"{stage}_entropy",) for stage in STAGES},
    }
    return {
        **{
            name: sums.get(name, 0.0) / max(sums.get(count, 0.0), 1.0)
            for count, names in means.items()
            for name in names
        },
        **{name: sums.get(name, 0.0) for name in ("constant_groups", "invalid_rewards", "answers")},
        "grad_norm": sums["grad_norm"] / sums["steps"],
    }
