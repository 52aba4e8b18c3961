"""The sequence of one answer: what is written, what the engine holds, and guesses ahead of both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from autovla_rt.runtime.backends import Float, LanguageEngine

TokenIds = NDArray[np.int64]


@dataclass(frozen=True)
class Guess:
    """Ids that rode along with a pass as a guess.

    Attributes:
        start: Position of the first one, from the sequence's beginning.
        count: How many.
        right: How many of them, from the first on, were then written.
    """

    start: int
    count: int
    right: int


class Tape:
    """Ids in a row, passed through a language model no more often than is needed.

    A pass takes all ids that were written since the last one and, behind them, a guess of what
    comes next. As long as what is then written is what was guessed, its hidden states are there
    already; the first id that differs costs a pass, and what was passed in its place is forgotten.
    So a guess decides how many passes there are, and nothing else (Leviathan et al. 2023, section
    2.3, for a guess that is certain of itself).

    Args:
        engine: Holds nothing, or the keys and values of the prompt's first `length` positions.
        prompt_ids: [p] ids of the whole prompt.

    Attributes:
        ids: Prompt and answer so far.
        passes: Forward passes of the engine.
    """

    def __init__(self, engine: LanguageEngine, prompt_ids: Sequence[int] | TokenIds) -> None:
        self.engine = engine
        self.ids = [int(i) for i in prompt_ids]
        self.passes = 0
        self._guessed: list[tuple[int, int]] = []
        self._right: list[int] = []
        self._prompt_length = len(self.ids)
        self._passed = self.ids[: engine.length]
        self._agreed = engine.length
        """So many ids at the front are both written and passed."""
        self._first = engine.length
        self._hidden: Float | None = None
        """Final states [n, hidden] of the last pass, from position `_first` on.

        That is the last id that was written, and the guesses behind it.
        """

    def write(self, *ids: int) -> None:
        """Append ids."""
        for token_id in ids:
            position = len(self.ids)
            self.ids.append(token_id)
            if self._agreed == position < len(self._passed) and self._passed[position] == token_id:
                self._agreed += 1
                self._right[-1] += 1

    def prefill(self, prompt_embeddings: Float, guess: Sequence[int] = ()) -> None:
        """Pass the rest of the prompt, all that was written behind it, and a guess.

        `prompt_embeddings` are those [p - length, hidden] of the positions not held yet.
        """
        held, given = self.engine.length, prompt_embeddings.shape[0]
        if held + given != self._prompt_length:
            raise ValueError(
                f"The prompt has {self._prompt_length} ids, but the engine holds {held} positions "
                f"and {given} embeddings were given: truncate the engine to the prefix first."
            )
        guess = self._fitting(guess)
        answer = self._embed([*self.ids[self._prompt_length :], *guess])
        self._pass(held, np.concatenate([prompt_embeddings, answer]), guess)

    @property
    def needs_pass(self) -> bool:
        """Whether the last id's final state is not there yet."""
        last = len(self.ids) - 1
        return self._hidden is None or not self._first <= last < self._agreed

    def hidden(self, guess: Sequence[int] = ()) -> Float:
        """Return the final state [1, hidden] of the last id.

        Where it takes a pass, `guess` rides along: ids that may be written next.
        """
        last = len(self.ids) - 1
        if self.needs_pass:
            kept = min(self._agreed, last)
            guess = self._fitting(guess)
            self._pass(kept, self._embed([*self.ids[kept:], *guess]), guess)
        assert self._hidden is not None
        return self._hidden[last - self._first :][:1]

    def look(self, guess: Sequence[int]) -> Float:
        """Return the final states [1 + n, hidden] of the last id and of `n` ids behind it.

        It takes a pass unless these very ids were passed as the last guess. They must fit.
        """
        guess, behind = list(guess), len(self.ids)
        if self.needs_pass or self._passed[behind : behind + len(guess)] != guess:
            kept = min(self._agreed, behind - 1)
            self._pass(kept, self._embed([*self.ids[kept:], *guess]), guess)
        assert self._hidden is not None
        return self._hidden[behind - 1 - self._first :][: 1 + len(guess)]

    @property
    def guess(self) -> list[int]:
        """The ids that were passed behind the last one (which is there, see `needs_pass`)."""
        return self._passed[len(self.ids) :]

    @property
    def guesses(self) -> tuple[Guess, ...]:
        """What was guessed, by pass; a pass without a guess has none."""
        guessed = zip(self._guessed, self._right, strict=True)
        return tuple(Guess(start, count, right) for (start, count), right in guessed if count)

    def ahead(self) -> Float:
        """Return the final states [n, hidden] of the ids that were guessed behind the last one."""
        assert self._hidden is not None
        return self._hidden[len(self.ids) - self._first :]

    def rollback(self, length: int) -> None:
        """Forget the ids from `length` on."""
        del self.ids[length:]
        self._agreed = min(self._agreed, length)

    def _fitting(self, guess: Sequence[int]) -> Sequence[int]:
        """Cut a guess to what the engine can hold."""
        return guess[: max(self.engine.capacity - len(self.ids), 0)]

    def _embed(self, ids: Sequence[int]) -> Float:
        return self.engine.embed(np.asarray(ids, dtype=np.int64))

    def _pass(self, kept: int, embeddings: Float, guess: Sequence[int]) -> None:
        if self.engine.length > kept:
            self.engine.truncate(kept)
        self._hidden = self.engine.extend(embeddings, 1 + len(guess))
        self._passed = [*self.ids, *guess]
        self._agreed, self._first = len(self.ids), len(self.ids) - 1
        self.passes += 1
        self._guessed.append((len(self.ids), len(guess)))
        self._right.append(0)
