"""The action head: logits of a few rows of the vocabulary, the reference of the GPU kernel."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def action_logits(hidden: NDArray[np.float32], weight: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the logits [m, N] of `m` final hidden states [m, H] over `N` head rows [N, H].

    `weight` holds the rows of the language model's head for the candidates only (2,048 actions of
    153,713 tokens), so under a grammar that allows nothing else the result is exact.
    """
    return hidden @ weight.T


def best_actions(
    logits: NDArray[np.float32], allowed: NDArray[np.bool_], count: int
) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """Return the `count` best of what is allowed, [m, N], best first: ids and logits [m, count].

    Of equal logits the lowest id comes first. Where fewer are allowed, the id is -1 and the logit
    -inf. NaN counts as +inf, so that whoever looks at the best one sees that it is not finite.
    """
    known = np.where(np.isnan(logits), np.float32(np.inf), logits)
    scores = np.where(allowed, known, np.float32(-np.inf))
    order = np.argsort(-scores, axis=1, kind="stable")[:, :count]
    best = np.take_along_axis(scores, order, axis=1)
    return np.where(np.isneginf(best), -1, order).astype(np.int32), best
