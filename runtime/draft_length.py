"""How many ids to guess at a time: as many as pay for the time that their pass takes longer."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

FORGETTING = 0.9
"""Weight of an earlier outcome beside the next one: the last ten count."""

EXPLORED = 16
"""Every so many choices the longest guess is taken, or acceptance that came back would not show."""


class DraftLength:
    """Chooses the length of guesses in a stream, from what was accepted and what passes cost.

    A pass of one row and `n` guesses yields 1 + a1 + a1 a2 + ... + a1 ... an tokens, where ai is
    how often guess i was right once those before it were. The length with most tokens a millisecond
    is taken (Leviathan et al. 2023, section 3.5, with measured costs and one acceptance for each
    place). It changes how many passes an answer takes, never what it says.

    Args:
        most: Longest guess.
        pass_ms: Measured milliseconds of a pass by its rows; costs between are interpolated. Empty
            where nothing was measured: the longest guess is taken then.
    """

    def __init__(self, most: int, pass_ms: Mapping[int, float]) -> None:
        self._most = most
        rows = sorted(pass_ms)
        self._cost = (
            np.interp(np.arange(1, most + 2), rows, [pass_ms[k] for k in rows])
            if rows
            else np.ones(most + 1)
        )
        self._right, self._tried = np.ones(most), np.ones(most)
        self._choices = 0

    def choose(self) -> int:
        """Return how many ids to guess at a time in the next answer."""
        self._choices += 1
        if self._choices % EXPLORED == 0:
            return self._most
        accepted = np.cumprod(self._right / self._tried)
        tokens = 1 + np.concatenate([[0.0], np.cumsum(accepted)])
        return int(np.flatnonzero(tokens / self._cost >= (tokens / self._cost).max())[-1])

    def note(self, count: int, right: int) -> None:
        """Learn that of `count` guesses the first `right` ones were right, and no more."""
        tried = np.arange(min(count, right + 1))
        self._tried[tried] = FORGETTING * self._tried[tried] + 1
        self._right[tried] = FORGETTING * self._right[tried] + (tried < right)
