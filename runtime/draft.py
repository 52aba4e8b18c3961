"""Drafts: cheap guesses of an answer, which a pass of the model confirms or corrects."""

from __future__ import annotations

import math
import sys
import typing
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from autovla_rt.errors import InputError
from autovla_rt.runtime.actions import Codebook

CARRIED = 0.7
"""Share of a correction that goes on into the next step (measured: bench/README.md)."""

REASONING_AHEAD = 8
LONGEST_MATCH = 8
"""Ids before a place in an earlier text that are compared with the last ones written."""


@dataclass(frozen=True)
class Draft:
    """What an answer may turn out to be.

    It decides how many passes an answer takes, never what it says.

    Attributes:
        actions: Rows of the codebook, from the first action on; may be fewer than the plan has.
        answer: Ids of an earlier answer, whose reasoning may come again.
        mode: The branch that is likely where the model decides.
        in_prefill: Whether the prefill's pass takes the likely branch and its draft along.
        reasoning_ahead: Ids of reasoning that are guessed at a time; 0 guesses none.
        actions_ahead: Actions that are guessed at a time, at most.
    """

    actions: tuple[int, ...] = ()
    answer: tuple[int, ...] = ()
    mode: typing.Literal["fast", "slow"] = "fast"
    in_prefill: bool = True
    reasoning_ahead: int = REASONING_AHEAD
    actions_ahead: int = sys.maxsize


@dataclass(frozen=True)
class Refinement:
    """Take what the model chooses after a few passes over the draft, instead of what is exact.

    Each pass gives the model's own choice at every step behind the choices of the pass before, and
    makes one more step exact, from the first on. So K passes give a plan whose first K steps are
    those of the exact greedy one, and the others near; ten are all of it (a fixed point).

    Attributes:
        passes: Most passes over the plan, from 1 on.
        tolerance: Metres; no further pass once the plan that one was given and the plan that it
            chose are nowhere farther apart.
        certainty: No further pass once no step of them is farther apart than so many standard
            deviations of the model's own distribution over that step: what is left to change is
            less than what the model can tell apart. 0 asks for equal steps.
    """

    passes: int
    tolerance: float = 0.0
    certainty: float = 0.0

    def __post_init__(self) -> None:
        limits = (self.tolerance, self.certainty)
        if self.passes < 1 or not all(0 <= limit < math.inf for limit in limits):
            raise InputError(
                "refinement: expected one pass or more, a tolerance from 0 m on and a certainty "
                f"from 0 on, got {self.passes}, {self.tolerance} and {self.certainty}."
            )


NO_DRAFT = Draft(in_prefill=False, reasoning_ahead=0, actions_ahead=0)
"""Guesses nothing: a pass for every token that is chosen."""


def corrected(codebook: Codebook, guess: Sequence[int], own: Sequence[int]) -> list[int]:
    """Return a better guess of actions where the model, given `guess`, chose `own` at each step.

    Its own choices are one (Jacobi iteration: Santilli et al. 2023, section 3), but each of them
    was made behind a wrong step: who is told to have driven 4.0 m goes on with 4.0 m. So a step's
    correction is carried on into the steps behind it, less with each.

    Args:
        codebook: What actions do.
        guess: Rows [n] of the codebook.
        own: What the model chose [n] in the place of each.
    """
    before, after = (codebook.poses[np.array(rows, np.int64)] for rows in (guess, own))
    carried = _carrying(len(guess)) @ (after - before)
    indices: list[int] = codebook.nearest(after + carried).tolist()
    return indices


@cache
def _carrying(count: int) -> NDArray[np.float64]:
    """Return how much of each of `count` corrections (columns) goes on into each step (rows)."""
    steps = np.arange(count)
    return np.tril(CARRIED ** np.abs(steps[:, None] - steps), -1)


def continuation(texts: Sequence[Sequence[int]], written: Sequence[int], count: int) -> list[int]:
    """Guess at most `count` ids that follow `written`: what followed its like in earlier texts.

    The place is taken that shares the longest run of last ids with `written` (prompt lookup:
    Saxena 2023), the last one in the first of the texts if several do; without a shared id there is
    no guess.
    """
    best, found = 0, []
    for text in texts:
        for end in range(len(text) - 1, 0, -1):
            shared = _shared(text, end, written)
            if shared > best:
                best, found = shared, list(text[end : end + count])
                if best == LONGEST_MATCH:
                    return found
    return found


def _shared(text: Sequence[int], end: int, written: Sequence[int]) -> int:
    """Count the last ids of `text[:end]` that are the last ones of `written`, too."""
    most = min(end, len(written), LONGEST_MATCH)
    for count in range(most):
        if text[end - 1 - count] != written[-1 - count]:
            return count
    return most
