"""Decoding: one pass over the answer's segments, with every forced id riding along for free."""

from __future__ import annotations

import typing
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from autovla_rt.errors import CapacityError, InputError
from autovla_rt.runtime.backends import Float, LanguageEngine
from autovla_rt.runtime.grammar import Actions, Grammar, Literal
from autovla_rt.runtime.reasoning import Free
from autovla_rt.runtime.sampling import Sampler, require_usable
from autovla_rt.runtime.trace import Trace

Mode = typing.Literal["auto", "fast", "slow"]
FinishReason = typing.Literal["stop", "thinking_budget", "capacity"]
TokenIds = NDArray[np.int64]

BRANCHES = ("fast", "slow")
"""The answers of a chain-of-thought checkpoint, in the order of the decision's candidates."""


@dataclass(frozen=True)
class Decoded:
    """One answer.

    Attributes:
        output_ids: The whole answer, forced ids and end token included.
        action_ids: Vocabulary ids of the actions.
        action_indices: The same as rows of the codebook.
        reasoning: Text of the free reasoning; "" where there was none.
        mode: "fast" or "slow"; "direct" without chain of thought.
        p_slow: The model's own probability of the slow answer, also where the mode was forced; None
            without chain of thought.
        finish_reason: Why the reasoning ended: "stop" (by itself, or there was none),
            "thinking_budget", or "capacity" (the KV cache was full but for the plan).
        forward_passes: Passes of the language model, the prefill included.
        thinking_tokens: Reasoning ids that were generated.
    """

    output_ids: tuple[int, ...]
    action_ids: tuple[int, ...]
    action_indices: tuple[int, ...]
    reasoning: str
    mode: str
    p_slow: float | None
    finish_reason: FinishReason
    forward_passes: int
    thinking_tokens: int


@dataclass(frozen=True)
class _Thoughts:
    ids: tuple[int, ...] = ()
    text: str = ""
    finish_reason: FinishReason = "stop"


def decode(
    engine: LanguageEngine,
    grammar: Grammar,
    prompt_ids: Sequence[int] | TokenIds,
    prompt_embeddings: Float,
    *,
    sampler: Sampler,
    mode: Mode,
    thinking_token_budget: int,
    trace: Trace,
) -> Decoded:
    """Decode one answer under the grammar: always a whole one with exactly the grammar's actions.

    Args:
        engine: Holds nothing, or the keys and values of the prompt's first `length` positions.
        grammar: The checkpoint's answers.
        prompt_ids: [p] ids of the whole prompt (visual tokens as their placeholder id).
        prompt_embeddings: [p - length, hidden] embeddings of the positions not held yet.
        sampler: Chooses among the legal candidates.
        mode: "auto" lets the model decide; "fast" and "slow" force the branch.
        thinking_token_budget: Most reasoning ids to generate before the reasoning is closed.
        trace: Receives the spans prefill, decision, reasoning and actions.

    Raises:
        InputError: The mode or the budget cannot be served by this grammar.
        CapacityError: Prompt and shortest answer exceed the engine's positions (before any pass).
        BundleError: The engine returned unusable logits.
    """
    require_possible(grammar, mode, thinking_token_budget)
    allowed = grammar.branches if mode == "auto" else (mode,)
    needed = {branch: grammar.positions(branch) for branch in allowed}
    _require_capacity(engine, len(prompt_ids), max(needed.values()))
    tape = _Tape(engine, prompt_ids)
    tape.write(*grammar.opening)
    with trace.span("prefill"):
        tape.prefill(prompt_embeddings)
    branch, p_slow = "direct", None
    if grammar.choice is not None:
        with trace.span("decision"):
            branch, p_slow = _decide(tape, grammar, sampler, mode)
    thoughts = _Thoughts()
    action_indices: tuple[int, ...] = ()
    for segment in grammar.branches[branch]:
        match segment:
            case Literal(ids):
                tape.write(*ids)
            case Free():
                spare = engine.capacity - len(prompt_ids) - needed[branch]
                with trace.span("reasoning"):
                    thoughts = _reason(tape, segment, sampler, thinking_token_budget, spare)
            case Actions(count):
                with trace.span("actions"):
                    action_indices = _act(tape, grammar, sampler, count)
    return Decoded(
        output_ids=tuple(tape.ids[len(prompt_ids) :]),
        action_ids=tuple(grammar.actions.action_start_id + index for index in action_indices),
        action_indices=action_indices,
        reasoning=thoughts.text,
        mode=branch,
        p_slow=p_slow,
        finish_reason=thoughts.finish_reason,
        forward_passes=tape.passes,
        thinking_tokens=len(thoughts.ids),
    )


def generate(
    engine: LanguageEngine,
    prompt_embeddings: Float,
    prompt_ids: Sequence[int] | TokenIds,
    *,
    sampler: Sampler,
    max_new_tokens: int,
    end_token_ids: Collection[int],
) -> Iterator[int]:
    """Generate freely: no grammar, the whole vocabulary, one id a pass (arguments as in `decode`).

    Yields:
        Ids up to and including an end token, `max_new_tokens` at most.

    Raises:
        CapacityError: The engine is full before the answer has ended.
        BundleError: The engine returned unusable logits.
    """
    tape = _Tape(engine, prompt_ids)
    tape.prefill(prompt_embeddings)
    for _ in range(max_new_tokens):
        logits = engine.logits(tape.hidden())[0]
        token_id = sampler.choose(logits, np.arange(logits.size), tape.ids, stage="answer")
        tape.write(token_id)
        yield token_id
        if token_id in end_token_ids:
            return


class _Tape:
    """The sequence so far: ids that the engine holds and, behind them, ids not yet passed."""

    def __init__(self, engine: LanguageEngine, prompt_ids: Sequence[int] | TokenIds) -> None:
        self.engine = engine
        self.ids = [int(i) for i in prompt_ids]
        self.passes = 0
        self._prompt_length = len(self.ids)
        self._hidden: Float | None = None

    def write(self, *ids: int) -> None:
        self.ids.extend(ids)

    def prefill(self, prompt_embeddings: Float) -> None:
        """Pass the rest of the prompt and all that was written behind it."""
        held, given = self.engine.length, prompt_embeddings.shape[0]
        if held + given != self._prompt_length:
            raise ValueError(
                f"The prompt has {self._prompt_length} ids, but the engine holds {held} positions "
                f"and {given} embeddings were given: truncate the engine to the prefix first."
            )
        self._pass(np.concatenate([prompt_embeddings, self._embed(self._prompt_length)]))

    def hidden(self) -> Float:
        """Return [1, hidden] of the last id; all ids not yet passed go into one pass."""
        if self.engine.length < len(self.ids):
            self._pass(self._embed(self.engine.length))
        assert self._hidden is not None
        return self._hidden

    def rollback(self, length: int) -> None:
        """Forget the ids from `length` on; something must be written before `hidden` is read."""
        del self.ids[length:]
        if self.engine.length > length:
            self.engine.truncate(length)
            self._hidden = None

    def _embed(self, start: int) -> Float:
        return self.engine.embed(np.asarray(self.ids[start:], dtype=np.int64))

    def _pass(self, embeddings: Float) -> None:
        self._hidden = self.engine.extend(embeddings)[-1:]
        self.passes += 1


def _decide(tape: _Tape, grammar: Grammar, sampler: Sampler, mode: Mode) -> tuple[str, float]:
    """Choose the branch from the two choice tokens' logits alone, and write its token."""
    assert grammar.choice is not None
    candidates = np.array([grammar.choice.fast_id, grammar.choice.slow_id])
    logits = tape.engine.logits(tape.hidden())[0, candidates]
    require_usable(logits, "decision")
    weights = np.exp(logits.astype(np.float64) - logits.max())
    if mode == "auto":
        chosen = sampler.choose(logits, candidates, tape.ids, stage="decision")
    else:
        chosen = BRANCHES.index(mode)
    tape.write(int(candidates[chosen]))
    return BRANCHES[chosen], float(weights[1] / weights.sum())


def _reason(tape: _Tape, free: Free, sampler: Sampler, budget: int, spare: int) -> _Thoughts:
    """Reason freely until the closing tag, the budget or the cache's spare positions end it."""
    start = len(tape.ids)
    for _ in range(min(budget, spare)):
        logits = tape.engine.logits(tape.hidden())[0][free.legal_ids]
        chosen = sampler.choose(logits, free.legal_ids, tape.ids, stage="reasoning")
        token_id = int(free.legal_ids[chosen])
        if free.closes(tape.ids[start:], token_id):
            thoughts = tuple(tape.ids[start:])
            tape.write(free.closer_id, *free.closing)
            return _Thoughts(thoughts, free.text(thoughts))
        tape.write(token_id)
    thoughts = tuple(tape.ids[start:])
    kept, closing = free.cut(thoughts)
    tape.rollback(start + kept)
    tape.write(*closing)
    return _Thoughts(
        thoughts, free.text(thoughts), "capacity" if spare < budget else "thinking_budget"
    )


def _act(tape: _Tape, grammar: Grammar, sampler: Sampler, count: int) -> tuple[int, ...]:
    """Choose `count` actions through the action head; the last one needs no pass of its own."""
    indices = []
    for _ in range(count):
        logits = tape.engine.action_logits(tape.hidden())[0]
        index = sampler.choose(logits, grammar.action_ids, tape.ids, stage="action")
        indices.append(index)
        tape.write(int(grammar.action_ids[index]))
    return tuple(indices)


def require_possible(grammar: Grammar, mode: Mode, thinking_token_budget: int) -> None:
    """Refuse a mode or budget that this grammar cannot serve; cheap, so call it before any work.

    Raises:
        InputError: The mode is unknown or needs a chain of thought, or the budget is negative.
    """
    if thinking_token_budget < 0:
        raise InputError(f"thinking_token_budget must be >= 0, got {thinking_token_budget}.")
    if mode not in ("auto", *BRANCHES):
        raise InputError(f"mode must be auto, fast or slow, got {mode!r}.")
    if mode != "auto" and grammar.choice is None:
        raise InputError(
            f"mode {mode!r} needs a bundle with chain of thought, this one answers directly: use "
            "auto."
        )


def _require_capacity(engine: LanguageEngine, prompt_length: int, answer_length: int) -> None:
    needed = prompt_length + answer_length
    if needed > engine.capacity:
        raise CapacityError(
            f"The request needs {needed} sequence positions ({prompt_length} of prompt and "
            f"{answer_length} of answer), the engine has {engine.capacity}: shorten the "
            "instruction, or rebuild the bundle with a larger KV capacity."
        )
