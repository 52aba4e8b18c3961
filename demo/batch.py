"""One micro-batch of training: what the samples' author fills and the trainer reads."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

GRID = (2, 8, 14)
"""Temporal patches, patch rows and patch columns of every camera."""

PROMPT, FIRST_ANSWER, SECOND_ANSWER, PADDING = 0, 1, 2, -1
"""Values of `Batch.segments`."""


@dataclass(frozen=True)
class Tokens:
    """What the language model reads of B samples, right-padded to T tokens.

    Several answers may be packed behind one prompt: a token sees the tokens before it that belong
    to the prompt or to its own answer, and the positions of each answer start right behind the
    prompt. The video placeholders stand at the same indices in every sample.

    Attributes:
        token_ids: int64 [B, T].
        positions: int64 [3, B, T], M-RoPE (temporal, row, column).
        segments: int8 [B, T], `PROMPT`, `FIRST_ANSWER` and so on, or `PADDING`.
    """

    token_ids: NDArray[np.int64]
    positions: NDArray[np.int64]
    segments: NDArray[np.int8]


@dataclass(frozen=True)
class Batch(Tokens):
    """B samples with N predictions; A is the auxiliary head's width.

    Attributes:
        patches: uint8 [B, 6, 112, 1176], raw values of the temporal patches: front t0, front t1,
            front_left t0, ...; patches in the processor's order (blocks of merge x merge), values
            in the order channel, time, row, column.
        predict_from: int64 [N], flat index b * T + t of the hidden state that predicts.
        targets: int64 [N], the token id to be predicted there.
        weights: float32 [N], weight of each prediction in the loss.
        auxiliary: float32 [B, 168, A], targets in 0..1 of the auxiliary head by visual token.
        auxiliary_weights: float32 [B, 168, A].
    """

    patches: NDArray[np.uint8]
    predict_from: NDArray[np.int64]
    targets: NDArray[np.int64]
    weights: NDArray[np.float32]
    auxiliary: NDArray[np.float32]
    auxiliary_weights: NDArray[np.float32]
