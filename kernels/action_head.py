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
