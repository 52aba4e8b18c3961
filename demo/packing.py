"""Prompts and the answers to them as rows of tokens: every answer of a row behind one prompt."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from autovla_rt.demo.batch import FIRST_ANSWER, PADDING, PROMPT, Tokens

Ids = Sequence[int] | NDArray[np.int64]


def pack_answers(
    rows: Sequence[tuple[Ids, Sequence[Ids]]], positions_of: Callable[[int], NDArray[np.int64]]
) -> tuple[Tokens, list[list[NDArray[np.int64]]]]:
    """Pack rows of a prompt and its answers.

    Args:
        rows: Ids of the prompt, and of each answer.
        positions_of: Gives the M-RoPE positions [3, n] of a sequence of n tokens.

    Returns:
        The tokens, padded to the longest row, and for each row and answer the flat index
        b * T + t of the state that predicts each of its ids; the prompt's last predicts the first.
    """
    longest = max(len(prompt) + sum(map(len, answers)) for prompt, answers in rows)
    shape = len(rows), longest
    token_ids = np.zeros(shape, np.int64)
    segments = np.full(shape, PADDING, np.int8)
    positions = np.zeros((3, *shape), np.int64)
    table = positions_of(longest)
    sources: list[list[NDArray[np.int64]]] = []
    for row, (prompt, answers) in enumerate(rows):
        start = at = len(prompt)
        token_ids[row, :start], segments[row, :start] = prompt, PROMPT
        positions[:, row, :start] = table[:, :start]
        sources.append([])
        for segment, answer in enumerate(answers, FIRST_ANSWER):
            end = at + len(answer)
            token_ids[row, at:end], segments[row, at:end] = answer, segment
            positions[:, row, at:end] = table[:, start : start + len(answer)]
            before = np.arange(at - 1, end - 1)
            before[0] = start - 1
            sources[-1].append(row * longest + before)
            at = end
    return Tokens(token_ids, positions, segments), sources
