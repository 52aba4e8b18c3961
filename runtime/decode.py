"""Decoding: one pass over the answer's segments, with every forced id riding along for free."""

from __future__ import annotations

import typing
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile

import numpy as np
from numpy.typing import NDArray

from autovla_rt.errors import CapacityError, InputError
from autovla_rt.runtime.actions import Codebook
from autovla_rt.runtime.backends import Float, LanguageEngine
from autovla_rt.runtime.decoding_options import BRANCHES, Decoding, DecodingOptions, Mode
from autovla_rt.runtime.draft import NO_DRAFT, Draft, Refinement, continuation, corrected
from autovla_rt.runtime.grammar import Actions, Grammar, Literal
from autovla_rt.runtime.reasoning import Free
from autovla_rt.runtime.sampling import Sampler, Sampling, require_usable
from autovla_rt.runtime.tape import Guess, Tape
from autovla_rt.runtime.trace import Trace

FinishReason = typing.Literal["stop", "thinking_budget", "capacity", "deadline"]
TokenIds = NDArray[np.int64]


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
            "thinking_budget", "capacity" (the KV cache was full but for the plan) or "deadline".
        forward_passes: Passes of the language model, the prefill included.
        thinking_tokens: Reasoning ids that were generated.
        guesses: What rode along with passes as guesses; they start at places of `output_ids`.
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
    guesses: tuple[Guess, ...]

    @property
    def drafted(self) -> int:
        """Ids that were passed as guesses."""
        return sum(guess.count for guess in self.guesses)

    @property
    def accepted(self) -> int:
        """How many of them the answer has."""
        return sum(guess.right for guess in self.guesses)

    @property
    def first_action(self) -> int:
        """Place of the first action in `output_ids`."""
        return self.output_ids.index(self.action_ids[0])


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
    trace: Trace,
    draft: Draft = NO_DRAFT,
    codebook: Codebook | None = None,
    **options: typing.Unpack[DecodingOptions],
) -> Decoded:
    """Decode one answer under the grammar: always a whole one with exactly the grammar's actions.

    Args:
        engine: Holds nothing, or the keys and values of the prompt's first `length` positions.
        grammar: The checkpoint's answers.
        prompt_ids: [p] ids of the whole prompt (visual tokens as their placeholder id).
        prompt_embeddings: [p - length, hidden] embeddings of the positions not held yet.
        sampler: Chooses among the legal candidates.
        trace: Receives the spans prefill, decision, reasoning and actions.
        draft: What the answer may be; it saves passes and changes nothing else.
        codebook: What actions do: makes better guesses, and is needed for a refinement.
        options: See `Decoding`.

    Raises:
        InputError: The mode, the budget or the refinement cannot be served.
        CapacityError: Prompt and shortest answer exceed the engine's positions (before any pass).
        BundleError: The engine returned unusable logits.
    """
    how = Decoding(**options)
    how.require_possible(grammar)
    mode, refinement = how.mode, how.refinement
    if refinement is not None:
        _require_greedy(sampler.sampling)
        if codebook is None:
            raise ValueError("a refinement needs the codebook")
    allowed = grammar.branches if mode == "auto" else (mode,)
    needed = {branch: grammar.positions(branch) for branch in allowed}
    _require_capacity(engine, len(prompt_ids), max(needed.values()))
    tape = Tape(engine, prompt_ids)
    tape.write(*grammar.opening)
    with trace.span("prefill"):
        tape.prefill(prompt_embeddings, _opening_guess(grammar, mode, draft))
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
                    thoughts = _reason(tape, segment, sampler, how, spare, draft)
            case Actions(count):
                with trace.span("actions"):
                    action_indices = (
                        _act(tape, grammar, sampler, count, draft, codebook)
                        if refinement is None or codebook is None
                        else _refine(tape, grammar, count, draft.actions, refinement, codebook)
                    )
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
        guesses=tuple(replace(g, start=g.start - len(prompt_ids)) for g in tape.guesses),
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
    tape = Tape(engine, prompt_ids)
    tape.prefill(prompt_embeddings)
    for _ in range(max_new_tokens):
        logits = engine.logits(tape.hidden())[0]
        token_id = sampler.choose(logits, np.arange(logits.size), tape.ids, stage="answer")
        tape.write(token_id)
        yield token_id
        if token_id in end_token_ids:
            return


def _decide(tape: Tape, grammar: Grammar, sampler: Sampler, mode: Mode) -> tuple[str, float]:
    """Choose the branch from the two choice tokens' logits alone, and write its token."""
    assert grammar.choice is not None
    token_ids = grammar.choice.fast_id, grammar.choice.slow_id
    candidates = np.array(token_ids)
    logits = tape.engine.choice_logits(tape.hidden(), token_ids)[0]
    require_usable(logits, "decision")
    weights = np.exp(logits.astype(np.float64) - logits.max())
    if mode == "auto":
        chosen = sampler.choose(logits, candidates, tape.ids, stage="decision")
    else:
        chosen = BRANCHES.index(mode)
    tape.write(int(candidates[chosen]))
    return BRANCHES[chosen], float(weights[1] / weights.sum())


def draft_from(decoded: Decoded, actions: Sequence[int]) -> Draft:
    """Return the draft that an answer is of a later one; `actions` take the place of its own."""
    mode: typing.Literal["fast", "slow"] = "slow" if decoded.mode == "slow" else "fast"
    return Draft(tuple(actions), decoded.output_ids, mode)


def _opening_guess(grammar: Grammar, mode: Mode, draft: Draft) -> list[int]:
    """Guess what follows the opening: the likely branch up to where the draft ends."""
    if not draft.in_prefill:
        return []
    branch, guess = "direct", list[int]()
    if grammar.choice is not None:
        branch = draft.mode if mode == "auto" else mode
        guess.append(grammar.choice.fast_id if branch == "fast" else grammar.choice.slow_id)
    for segment in grammar.branches[branch]:
        match segment:
            case Literal(ids):
                guess.extend(ids)
            case Free():
                return guess + continuation([draft.answer], guess, draft.reasoning_ahead)
            case Actions(count):
                ahead = min(count - 1, draft.actions_ahead)
                return guess + _action_ids(grammar, draft.actions[:ahead])
    return guess


def _reason(
    tape: Tape,
    free: Free,
    sampler: Sampler,
    how: Decoding,
    spare: int,
    draft: Draft,
) -> _Thoughts:
    """Reason freely until the closing tag, the budget, the cache or the deadline ends it."""
    start, budget = len(tape.ids), how.thinking_token_budget
    finish_reason: FinishReason = "capacity" if spare < budget else "thinking_budget"
    for _ in range(min(budget, spare)):
        if how.deadline is not None and how.deadline.closes_reasoning():
            finish_reason = "deadline"
            break
        guess: list[int] = []
        if draft.reasoning_ahead and tape.needs_pass:
            guess = continuation([draft.answer, tape.ids], tape.ids, draft.reasoning_ahead)
        logits = tape.engine.logits(tape.hidden(guess))[0][free.legal_ids]
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
    return _Thoughts(thoughts, free.text(thoughts), finish_reason)


def _act(
    tape: Tape,
    grammar: Grammar,
    sampler: Sampler,
    count: int,
    draft: Draft,
    codebook: Codebook | None,
) -> tuple[int, ...]:
    """Choose `count` actions through the action head; the last one needs no pass of its own."""
    likely, passes = list(draft.actions), None
    rows: Iterator[Float] = iter(())
    indices: list[int] = []
    for left in reversed(range(count)):
        guess = likely[: min(left, draft.actions_ahead)]
        hidden = tape.hidden(_action_ids(grammar, guess))
        if tape.passes != passes:
            passes = tape.passes
            rows, likely = _passed_rows(tape, grammar, hidden, likely, codebook)
        index = sampler.choose(next(rows), grammar.action_ids, tape.ids, stage="action")
        indices.append(index)
        tape.write(int(grammar.action_ids[index]))
        likely = likely[1:]
    return tuple(indices)


def _passed_rows(
    tape: Tape, grammar: Grammar, hidden: Float, likely: list[int], codebook: Codebook | None
) -> tuple[Iterator[Float], list[int]]:
    """Return the logits behind each action that was passed, and a better guess of the next ones."""
    first = grammar.actions.action_start_id
    passed = [token - first for token in takewhile(first.__le__, tape.guess)]
    states = np.concatenate([hidden, tape.ahead()[: len(passed)]])
    logits = tape.engine.action_logits(states)
    if passed:
        *own, last = logits.argmax(-1).tolist()
        better = own if codebook is None else corrected(codebook, passed, own)
        likely = [*better, last, *likely[len(states) :]]
    return iter(logits), likely


def _refine(
    tape: Tape,
    grammar: Grammar,
    count: int,
    draft: Sequence[int],
    refinement: Refinement,
    codebook: Codebook,
) -> tuple[int, ...]:
    """Take the model's own choices after the refinement's passes over the draft."""
    guess = [*draft, *([0] * count)][: count - 1]
    for _ in range(refinement.passes):
        states = tape.look(_action_ids(grammar, guess))
        logits = tape.engine.action_logits(states)
        for row in logits:
            require_usable(row, "action")
        *own, last = logits.argmax(-1).tolist()
        if _settled(codebook, guess, own, logits[:-1], refinement):
            break
        guess = corrected(codebook, guess, own)
    tape.write(*_action_ids(grammar, [*own, last]))
    return (*own, last)


def _settled(
    codebook: Codebook,
    guess: Sequence[int],
    own: Sequence[int],
    logits: Float,
    refinement: Refinement,
) -> bool:
    """Whether what the model chose, by its logits [n, num_actions], is near what it was given."""
    given, chosen = (np.array(indices, np.int64) for indices in (guess, own))
    moved = codebook.decode(given) - codebook.decode(chosen)
    steps = codebook.apart(given, chosen)
    return bool(
        np.hypot(*moved[:, :2].T).max(initial=0) <= refinement.tolerance
        or (steps <= refinement.certainty * codebook.deviation(logits)).all()
    )


def _action_ids(grammar: Grammar, indices: Sequence[int] | TokenIds) -> list[int]:
    return [grammar.actions.action_start_id + int(index) for index in indices]


def _require_greedy(sampling: Sampling) -> None:
    if not sampling.greedy or sampling.repetition_penalty != 1:
        raise InputError(
            "a refinement takes the likeliest actions: expected temperature 0 and repetition "
            f"penalty 1, got {sampling.temperature} and {sampling.repetition_penalty}.\n"
            "Decode exactly to sample."
        )


def _require_capacity(engine: LanguageEngine, prompt_length: int, answer_length: int) -> None:
    needed = prompt_length + answer_length
    if needed > engine.capacity:
        raise CapacityError(
            f"The request needs {needed} sequence positions ({prompt_length} of prompt and "
            f"{answer_length} of answer), the engine has {engine.capacity}: shorten the "
            "instruction, or rebuild the bundle with a larger KV capacity."
        )
