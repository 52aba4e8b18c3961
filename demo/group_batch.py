"""Groups of answers, packed for the model: every answer of a scene behind one prompt."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from autovla_rt.demo.batch import PADDING, PROMPT
from autovla_rt.demo.rollouts import Group


@dataclass(frozen=True)
class GroupBatch:
    """B groups of G answers, right-padded to T tokens, with N choices.

    Attributes:
        token_ids: int64 [B, T].
        positions: int64 [3, B, T], M-RoPE; each answer's start right behind the prompt.
        segments: int8 [B, T], `PROMPT`, 1 to G for the answers, or `PADDING`.
        features: float32 [B, visual tokens, hidden].
        predict_from: int64 [N], flat index b * T + t of the hidden state that chooses.
        targets: int64 [N], the token that was chosen there.
        stages: int64 [N], what it was chosen among.
        answers: int64 [N], index b * G + g of the answer.
        log_probabilities: float32 [N], as the engine saw them.
    """

    token_ids: NDArray[np.int64]
    positions: NDArray[np.int64]
    segments: NDArray[np.int8]
    features: NDArray[np.float32]
    predict_from: NDArray[np.int64]
    targets: NDArray[np.int64]
    stages: NDArray[np.int64]
    answers: NDArray[np.int64]
    log_probabilities: NDArray[np.float32]


def pack_groups(
    groups: Sequence[Group], positions_of: Callable[[int], NDArray[np.int64]]
) -> GroupBatch:
    """Pack groups of one size; `positions_of` gives the M-RoPE positions [3, n] of a sequence."""
    size = len(groups[0].rollouts)
    lengths = [
        len(g.prompt_ids) + sum(len(r.decoded.output_ids) for r in g.rollouts) for g in groups
    ]
    shape = len(groups), max(lengths)
    token_ids = np.zeros(shape, np.int64)
    segments = np.full(shape, PADDING, np.int8)
    positions = np.zeros((3, *shape), np.int64)
    table = positions_of(shape[1])
    choices: list[tuple[int, int, int, int, float]] = []
    for row, group in enumerate(groups):
        prompt = len(group.prompt_ids)
        token_ids[row, :prompt], segments[row, :prompt] = group.prompt_ids, PROMPT
        positions[:, row, :prompt] = table[:, :prompt]
        at = prompt
        for index, rollout in enumerate(group.rollouts):
            ids = rollout.decoded.output_ids
            end = at + len(ids)
            token_ids[row, at:end], segments[row, at:end] = ids, index + 1
            positions[:, row, at:end] = table[:, prompt : prompt + len(ids)]
            for choice in rollout.choices:
                place = choice.position - prompt
                source = at + place - 1 if place else prompt - 1
                choices.append(
                    (
                        row * shape[1] + source,
                        choice.token_id,
                        choice.stage,
                        row * size + index,
                        choice.log_probability,
                    )
                )
            at = end
    predict_from, targets, stages, answers, seen = zip(*choices, strict=True)
    return GroupBatch(
        token_ids,
        positions,
        segments,
        np.stack([group.features for group in groups]),
        np.array(predict_from, np.int64),
        np.array(targets, np.int64),
        np.array(stages, np.int64),
        np.array(answers, np.int64),
        np.array(seen, np.float32),
    )
