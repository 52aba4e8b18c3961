"""The grammar as a mask: which ids may follow what was written, for engines that decode themselves.

`decode` writes forced ids without asking, and may take some back where it cuts a reasoning short.
An engine with a loop of its own asks for one token at a time and takes nothing back.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from autovla_rt.runtime.decoding_options import BRANCHES, Decoding, Mode
from autovla_rt.runtime.grammar import Actions, Grammar, Literal
from autovla_rt.runtime.reasoning import Free, Ids

TokenIds = NDArray[np.int64]


class GrammarMask:
    """Which ids may follow the ids of an answer.

    What is chosen greedily under it is what `decode` writes, except where the budget ends a
    reasoning: `decode` may take ids back to close it as the tokenizer would have.

    Args:
        grammar: The checkpoint's answers.
        mode: "auto" lets the model decide; "fast" and "slow" force the branch.
        thinking_token_budget: Most reasoning ids before the reasoning is closed.

    Raises:
        InputError: the mode or the budget cannot be served.
    """

    def __init__(self, grammar: Grammar, mode: Mode, thinking_token_budget: int) -> None:
        Decoding(mode, thinking_token_budget).require_possible(grammar)
        self._grammar, self._budget = grammar, thinking_token_budget
        self._branch_of: dict[int, str] = {}
        if grammar.choice is not None:
            decisions = grammar.choice.fast_id, grammar.choice.slow_id
            self._branch_of = {
                token_id: branch
                for token_id, branch in zip(decisions, BRANCHES, strict=True)
                if mode in ("auto", branch)
            }

    def allowed(self, answer: Sequence[int]) -> TokenIds:
        """Return the ids [m] that may follow the ids of an answer that was written under this mask.

        Behind a whole answer that is the end token.
        """
        grammar, branch, at = self._grammar, "direct", len(self._grammar.opening)
        if len(answer) < at:
            return _ids(grammar.opening[len(answer)])
        if grammar.choice is not None:
            if len(answer) == at:
                return _ids(*self._branch_of)
            branch = self._branch_of[answer[at]]
            at += 1
        forced: Ids = ()
        for segment in grammar.branches[branch]:
            written = answer[at:]
            match segment:
                case Actions(count):
                    if len(written) < count:
                        return grammar.action_ids
                    at += count
                    continue
                case Literal(ids):
                    forced = ids
                case Free():
                    thoughts, forced = self._closed(segment, written)
                    if not forced:
                        return segment.legal_ids
                    at += thoughts
            if len(answer) < at + len(forced):
                return _ids(forced[len(answer) - at])
            at += len(forced)
        return _ids(forced[-1])

    def _closed(self, free: Free, written: Sequence[int]) -> tuple[int, Ids]:
        """Return how many ids are reasoning, and those that close it: none while it goes on."""
        for count, token_id in enumerate(written[: self._budget]):
            if free.closes(written[:count], token_id):
                return count, (free.closer_id, *free.closing)
        if len(written) < self._budget:
            return len(written), ()
        kept, closing = free.cut(written[: self._budget])
        return self._budget, closing if kept == self._budget else free.joined


def _ids(*ids: int) -> TokenIds:
    return np.array(ids, np.int64)
