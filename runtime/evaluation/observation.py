"""What one engine makes of one scene."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from autovla_rt.runtime.backends import Float
from autovla_rt.runtime.decode import Decoded
from autovla_rt.runtime.planner import Planner, Prompted
from autovla_rt.runtime.sampling import Sampler, Sampling
from autovla_rt.runtime.scene import Request


@dataclass(frozen=True)
class Observation:
    """One engine's answer, and what it makes of an answer that it is given.

    Attributes:
        trajectory: [num_poses, 3] of its own answer, as `Plan.trajectory`.
        decoded: That answer.
        features: [visual tokens, hidden] of all cameras, in the order of the prompt.
        action_logits: [num_poses, num_actions] that the given answer's actions are chosen from.
            (Not the states before: a calibrated engine has them in a basis of its own.)
        text_logits: [n, vocabulary] that the given answer's text before the actions is chosen
            from; n is 0 where it does not reason.
    """

    trajectory: NDArray[np.float64]
    decoded: Decoded
    features: Float
    action_logits: Float
    text_logits: Float


def observe(
    planner: Planner, request: Request, given: Decoded | None, *, thinking_token_budget: int
) -> Observation:
    """Let an engine answer greedily, then pass it a given answer (teacher forcing).

    Args:
        planner: The engine.
        request: The scene.
        given: An answer of another engine with the same tokens; None takes this one's own.
        thinking_token_budget: Most tokens of reasoning.

    Raises:
        InputError: the scene does not fit the engine.
        CapacityError: the answer does not fit the KV cache.
    """
    prompted = planner.encode(request)
    decoded = planner.answer(
        prompted, sampler=Sampler(Sampling()), thinking_token_budget=thinking_token_budget
    )
    answer = given or decoded
    first, count = answer.first_action, len(answer.action_ids)
    states = planner.states_before(prompted, answer.output_ids[: first + count])
    reasoned = first if answer.thinking_tokens else 0
    return Observation(
        trajectory=planner.trajectory(decoded),
        decoded=decoded,
        features=_features(planner, prompted),
        action_logits=planner.action_logits(states[first:]),
        text_logits=planner.logits(states[:reasoned]) if reasoned else np.zeros((0, 0), np.float32),
    )


def _features(planner: Planner, prompted: Prompted) -> Float:
    videos = planner.bundle.prompt().videos
    parts = [prompted.embeddings[video.start : video.start + video.count] for video in videos]
    return np.concatenate(parts)


def log_softmax(logits: Float) -> NDArray[np.float64]:
    """Return log probabilities over the last axis."""
    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    logs: NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return logs


def divergence(reference: Float, other: Float) -> NDArray[np.float64]:
    """KL(reference || other) in nats, over the last axis of logits."""
    p, q = log_softmax(reference), log_softmax(other)
    nats: NDArray[np.float64] = (np.exp(p) * (p - q)).sum(axis=-1)
    return nats


def choice_divergence(reference: float, other: float) -> float:
    """KL in nats of two choices, given the probabilities of one side."""
    edge = np.finfo(np.float64).tiny
    p = np.clip(np.array([reference, 1 - reference]), edge, None)
    q = np.clip(np.array([other, 1 - other]), edge, None)
    return float((p * np.log(p / q)).sum())


def first_difference(first: Sequence[int], second: Sequence[int]) -> int | None:
    """Return where two sequences differ first; None if they are equal."""
    for index, (a, b) in enumerate(zip(first, second, strict=False)):
        if a != b:
            return index
    return None if len(first) == len(second) else min(len(first), len(second))
