"""Groups of answers, packed for the model: every answer of a scene behind one prompt."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from autovla_rt.demo.batch import Tokens
from autovla_rt.demo.packing import pack_answers
from autovla_rt.demo.rollouts import Group


@dataclass(frozen=True)
class GroupBatch(Tokens):
    """B groups of G answers with N choices.

    Attributes:
        features: float32 [B, visual tokens, hidden].
        predict_from: int64 [N], flat index b * T + t of the hidden state that chooses.
        targets: int64 [N], the token that was chosen there.
        stages: int64 [N], what it was chosen among.
        answers: int64 [N], index b * G + g of the answer.
        log_probabilities: float32 [N], as the engine saw them.
    """

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
    rows = [(g.prompt_ids, [r.decoded.output_ids for r in g.rollouts]) for g in groups]
    tokens, sources = pack_answers(rows, positions_of)
    size = len(groups[0].rollouts)
    choices = [
        (row * size + index, sources[row][index][choice.position - len(group.prompt_ids)], choice)
        for row, group in enumerate(groups)
        for index, rollout in enumerate(group.rollouts)
        for choice in rollout.choices
    ]
    return GroupBatch(
        **vars(tokens),
        features=np.stack([group.features for group in groups]),
        predict_from=np.array([source for _, source, _ in choices], np.int64),
        targets=np.array([choice.token_id for _, _, choice in choices], np.int64),
        stages=np.array([choice.stage for _, _, choice in choices], np.int64),
        answers=np.array([answer for answer, _, _ in choices], np.int64),
        log_probabilities=np.array([c.log_probability for _, _, c in choices], np.float32),
    )
