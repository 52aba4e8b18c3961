"""How one request is answered, whatever it asks: the options of every call that decodes."""

from __future__ import annotations

import typing
from dataclasses import dataclass

from autovla_rt.errors import InputError
from autovla_rt.runtime.deadline import Deadline
from autovla_rt.runtime.draft import Refinement
from autovla_rt.runtime.grammar import Grammar

Mode = typing.Literal["auto", "fast", "slow"]

BRANCHES = ("fast", "slow")
"""The answers of a chain-of-thought checkpoint, in the order of the decision's candidates."""

DEFAULT_THINKING_TOKEN_BUDGET = 512


class DecodingOptions(typing.TypedDict, total=False):
    """Keywords of the calls that decode: the attributes of `Decoding`, and its defaults."""

    mode: Mode
    thinking_token_budget: int
    refinement: Refinement | None
    deadline: Deadline | None


@dataclass(frozen=True)
class Decoding:
    """How a request is answered.

    Attributes:
        mode: "auto" lets the model decide; "fast" and "slow" force the branch.
        thinking_token_budget: Most reasoning ids to generate before the reasoning is closed.
        refinement: Take the plan after so many passes over the draft; None is exact.
        deadline: Closes the reasoning while there is time for the actions. Make it when the frames
            are there.
    """

    mode: Mode = "auto"
    thinking_token_budget: int = DEFAULT_THINKING_TOKEN_BUDGET
    refinement: Refinement | None = None
    deadline: Deadline | None = None

    def require_possible(self, grammar: Grammar) -> None:
        """Refuse what this grammar cannot serve; cheap, so call it before any work.

        Raises:
            InputError: the mode is unknown or needs a chain of thought, or the budget is negative.
        """
        if self.thinking_token_budget < 0:
            raise InputError(
                f"thinking_token_budget must be >= 0, got {self.thinking_token_budget}."
            )
        if self.mode not in ("auto", *BRANCHES):
            raise InputError(f"mode must be auto, fast or slow, got {self.mode!r}.")
        if self.mode != "auto" and grammar.choice is None:
            raise InputError(
                f"mode {self.mode!r} needs a bundle with chain of thought, this one answers "
                "directly: use auto."
            )
