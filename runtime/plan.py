"""What a planner answers."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from autovla_rt.bundle import Manifest


@dataclass(frozen=True)
class Plan:
    """One answer of the model.

    Attributes:
        trajectory: [num_poses][x, y, heading], metres and radians in the ego frame (x forward,
            y left, heading counter-clockwise), `dt` s apart, the first one step ahead.
        mode: "fast", "slow", or "direct" for a checkpoint without chain of thought.
        p_slow: The model's own probability of the slow answer; None for "direct".
        action_tokens: Vocabulary ids of the actions.
        reasoning: Text of the chain of thought; "" where there was none.
        finish_reason: Why the reasoning ended: "stop", "thinking_budget", "capacity" or "deadline".
        status: "ok": a whole answer of fresh frames.
        forward_passes: Passes of the language model, the prefill included.
        thinking_tokens: Tokens of the reasoning.
        drafted: Tokens that were passed as guesses.
        accepted: How many of them the answer has.
        stages_ms: Milliseconds of each stage, in order.
        engine: Name, identity, target, precision, backend and notes of the bundle.
    """

    trajectory: list[list[float]]
    mode: str
    p_slow: float | None
    action_tokens: list[int]
    reasoning: str
    finish_reason: str
    status: str
    forward_passes: int
    thinking_tokens: int
    drafted: int
    accepted: int
    stages_ms: dict[str, float]
    engine: dict[str, Any]

    def as_dict(self) -> dict[str, Any]:
        """Plain containers, ready for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Alternatives:
    """What else the model considered for a request.

    Attributes:
        other_mode: The plan of the mode that was not taken; None without chain of thought, or
            where that answer does not fit the KV cache.
        samples: Plans drawn in the mode that was taken, in the order of their seeds.
    """

    other_mode: Plan | None = None
    samples: tuple[Plan, ...] = ()


def describe_engine(manifest: Manifest, identity: str) -> dict[str, Any]:
    """What a plan says about the engine that made it."""
    return {
        "name": manifest.name,
        "sha256": identity,
        "target": manifest.target,
        "backend": manifest.backend,
        "precision": manifest.precision.model_dump(),
        "checkpoint_sha256": manifest.checkpoint.sha256,
        "dt": manifest.actions.dt,
        "notes": list(manifest.notes),
    }
