"""Visual features of frames that were seen before: half of a request's, from the third on."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Hashable

import numpy as np
from numpy.typing import NDArray

from autovla_rt.errors import InputError
from autovla_rt.runtime.backends import Float

DIGEST_BYTES = 16


def content_key(camera: str, levels: NDArray[np.uint8]) -> Hashable:
    """Return a key of what a pair of frames shows: the levels that the tower reads, by content."""
    digest = hashlib.blake2b(levels.tobytes(), digest_size=DIGEST_BYTES).digest()
    return camera, digest


class FeatureCache:
    """The features of the last pairs of frames, by key; the one not used for longest goes first.

    At 2 Hz a pair of one request comes again two requests later, so two requests' pairs are enough
    (three cameras of two pairs: 12). They are exact: a pair's features do not depend on what else
    is encoded (docs/architecture.md, "Batch invariance").

    Args:
        pairs: Most pairs to keep; 0 keeps none.

    Attributes:
        hits, misses: How often a pair was there, and was not.
    """

    def __init__(self, pairs: int) -> None:
        if pairs < 0:
            raise InputError(f"cached pairs: expected 0 (none) or more, got {pairs}.")
        self._pairs = pairs
        self._features: OrderedDict[Hashable, Float] = OrderedDict()
        self.hits = self.misses = 0

    def __len__(self) -> int:
        """Pairs that are kept now."""
        return len(self._features)

    def get(self, key: Hashable) -> Float | None:
        """Return the features [tokens, hidden] of a pair, None if they are not there."""
        features = self._features.get(key)
        if features is None:
            self.misses += 1
            return None
        self.hits += 1
        self._features.move_to_end(key)
        return features

    def put(self, key: Hashable, features: Float) -> None:
        """Keep a copy of a pair's features."""
        if self._pairs == 0:
            return
        self._features[key] = features.copy()
        self._features.move_to_end(key)
        while len(self._features) > self._pairs:
            self._features.popitem(last=False)
