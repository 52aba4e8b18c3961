"""One scene's line of an evaluation: plain numbers, so that a run can be stopped and go on."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from autovla_rt.runtime.evaluation.observation import (
    Observation,
    choice_divergence,
    divergence,
    first_difference,
)
from autovla_rt.runtime.scene import Trajectory

Record = dict[str, Any]
HORIZONS = (1.0, 3.0, 5.0)
"""Seconds at which displacements are told."""


def displacements(
    trajectory: NDArray[np.float64], truth: NDArray[np.float64], dt: float
) -> dict[str, float]:
    """Return ADE and FDE in metres at 1, 3 and 5 s of poses `dt` s apart (NAVSIM's terms).

    ADE is the mean distance of all poses up to a time, FDE that of the pose at it.
    """
    count = min(len(trajectory), len(truth))
    distance = np.hypot(*(trajectory[:count, :2] - truth[:count, :2]).T)
    found = {}
    for horizon in HORIZONS:
        steps = round(horizon / dt)
        if steps <= count:
            found[f"ade_{horizon:g}s"] = float(distance[:steps].mean())
            found[f"fde_{horizon:g}s"] = float(distance[steps - 1])
    return found


def scene_record(
    token: str,
    expert: Trajectory | None,
    dt: float,
    seen: Observation,
    reference: Observation | None,
) -> Record:
    """Return what is told of a scene: against the truth, and against another engine's answer.

    Args:
        token: The scene's name.
        expert: What was driven; None where nobody knows.
        dt: Seconds between poses.
        seen: What the engine made of the scene.
        reference: What the engine that it is compared with made of it; `seen` was given its answer.
    """
    record: Record = {"token": token, **_answer(seen)}
    truth = None if expert is None else np.array(expert, np.float64)
    if truth is not None:
        record["truth"] = displacements(seen.trajectory, truth, dt)
    if reference is None:
        return record
    record["reference"] = _answer(reference)
    if truth is not None:
        record["reference"]["truth"] = displacements(reference.trajectory, truth, dt)
    record["apart"] = displacements(seen.trajectory, reference.trajectory, dt)
    record["same_mode"] = seen.decoded.mode == reference.decoded.mode
    record["same_plan"] = seen.decoded.action_ids == reference.decoded.action_ids
    if seen.decoded.mode == reference.decoded.mode == "slow":
        ours, theirs = (_reasoning(of) for of in (seen, reference))
        record["reasoning_tokens"] = len(theirs)
        record["reasoning_differs_at"] = first_difference(ours, theirs)
    if (p := reference.decoded.p_slow) is not None and seen.decoded.p_slow is not None:
        record["decision_kl"] = choice_divergence(p, seen.decoded.p_slow)
    if len(reference.text_logits):
        differ = divergence(reference.text_logits, seen.text_logits)
        record["text_kl"] = float(differ.mean())
    record["action_kl"] = divergence(reference.action_logits, seen.action_logits).tolist()
    chosen, expected = (of.action_logits.argmax(axis=-1) for of in (seen, reference))
    record["same_action"] = (chosen == expected).tolist()
    record["cosine"] = {
        "vision": _cosine(seen.features, reference.features),
        "language": _cosine(seen.action_logits, reference.action_logits),
    }
    return record


def _answer(seen: Observation) -> Record:
    return {
        "mode": seen.decoded.mode,
        "p_slow": seen.decoded.p_slow,
        "thinking_tokens": seen.decoded.thinking_tokens,
        "forward_passes": seen.decoded.forward_passes,
    }


def _reasoning(seen: Observation) -> tuple[int, ...]:
    """Return the answer's ids up to its first action: opening, reasoning and text behind it."""
    return seen.decoded.output_ids[: seen.decoded.first_action]


def _cosine(first: NDArray[np.float32], second: NDArray[np.float32]) -> float:
    """Return the mean cosine of the rows."""
    a, b = first.astype(np.float64), second.astype(np.float64)
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    products = np.einsum("nk,nk->n", a, b)
    return float(np.divide(products, norms, out=np.zeros_like(norms), where=norms > 0).mean())
