r"""The answer's grammar as TensorRT Edge-LLM's guided decoding reads it.

Its backend is XGrammar (0.2.1 in Edge-LLM 0.11). An EBNF over token ids allows at every step the
ids that our own decoding allows, and no others. A regular expression describes the same texts, but
leaves open how they are spelled: an action may come as `<`, `action`, `_`, `5`, `>`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
from tokenizers import Tokenizer

from autovla_rt.config import ActionSpace, AnswerFormat
from autovla_rt.errors import CheckpointError
from autovla_rt.runtime.bytelevel import token_bytes
from autovla_rt.runtime.grammar import Actions, Grammar, Literal, Segment, template_texts
from autovla_rt.runtime.reasoning import Free

AUTO = "auto"
"""The guide in which the model decides between fast and slow."""

LARGEST_GUIDE = 128 * 1024
"""Bytes; Edge-LLM 0.11 refuses larger guides."""

REASONING_MARKERS = ("<think>", "</think>", "<|channel>", "<channel|>")
"""Tokens at which Edge-LLM 0.11 sees reasoning begin and end: a guide holds behind it alone.

Qwen2.5's tokenizer has none of them, so a guide holds from the answer's first token on.
"""

LINES = r"(?:(?:[^<\n][^\n]*|<(?:[^/\n][^\n]*)?)?\n)*"
"""Lines of which none begins with `</`."""

SPECIAL = re.compile(r"[\\^$.|?*+()\[\]{}/]")


def check_markers(tokenizer: Tokenizer) -> None:
    """Refuse a tokenizer with which a guide would not hold for the whole answer.

    Raises:
        CheckpointError: it has one of `REASONING_MARKERS`.
    """
    found = [text for text in REASONING_MARKERS if tokenizer.token_to_id(text) is not None]
    if found:
        raise CheckpointError(
            f"the tokenizer has {', '.join(found)} as a token of its own: expected none of "
            f"{', '.join(REASONING_MARKERS)}, as in Qwen2.5's. Edge-LLM takes what is between them "
            "for reasoning and constrains only what follows, so the answer's grammar would not "
            "hold."
        )


def guide_modes(grammar: Grammar) -> tuple[str, ...]:
    """Return the modes that a grammar has guides for."""
    return ("direct",) if grammar.choice is None else (AUTO, "fast", "slow")


def ebnf(grammar: Grammar, mode: str, vocabulary: Sequence[int] | None = None) -> str:
    """Write the answers of a mode as XGrammar's EBNF over token ids.

    The end token is not part of it: XGrammar allows it where the root rule is complete.

    Args:
        grammar: The checkpoint's.
        mode: One of `guide_modes`.
        vocabulary: The id of every row of a reduced LM head, in order; None for the whole one.

    Raises:
        ValueError: a token of the answer is not in `vocabulary`.
        CheckpointError: the guide is larger than Edge-LLM takes.
    """
    text = "\n".join(_Rules(grammar, vocabulary).lines(mode)) + "\n"
    if len(text) > LARGEST_GUIDE:
        raise CheckpointError(
            f"the {mode} answer's grammar takes {len(text)} bytes, expected at most "
            f"{LARGEST_GUIDE}, the most that Edge-LLM reads. Use the regular expression."
        )
    return text


def answer_tokens(grammar: Grammar, mode: str) -> int:
    """Count the tokens of a mode's longest answer, its end among them, without reasoning."""
    modes = tuple(grammar.branches) if mode == AUTO else (mode,)
    # What stands behind the actions, and the last of them, takes no position in our own decoding.
    return max(grammar.positions(of) + 1 + _last(grammar.branches[of]).positions for of in modes)


def answer_vocabulary(grammar: Grammar, mode: str, end_token_ids: Iterable[int]) -> list[int]:
    """Return every id that an answer without reasoning ("fast", "direct") can hold, in order.

    Raises:
        ValueError: the mode's answer has free text, which needs the whole vocabulary.
    """
    ids = {*grammar.opening, *grammar.action_ids.tolist(), *end_token_ids}
    if grammar.choice is not None:
        ids.add(grammar.choice.fast_id)
    for segment in grammar.branches[mode]:
        if isinstance(segment, Free):
            raise ValueError(f"the {mode} answer has free text")
        if isinstance(segment, Literal):
            ids.update(segment.ids)
    return sorted(ids)


def regular_expression(
    answer: AnswerFormat, mode: str, actions: ActionSpace, *, captures: bool = False
) -> str:
    """Write the answers of a mode as a regular expression over text.

    It is of the dialect that XGrammar and Python's `re` share, but for groups that capture.

    Args:
        answer: The recipe's answers.
        mode: One of `guide_modes`.
        actions: How many action tokens there are, and in a plan.
        captures: Capture the groups `actions` and, of a slow answer, `reasoning`.

    Raises:
        RecipeError: a template has not the documented shape.
    """
    if mode == AUTO:
        both = (
            regular_expression(answer, of, actions, captures=captures) for of in ("fast", "slow")
        )
        return "(?:" + "|".join(both) + ")"
    numbers = "|".join(map(str, range(actions.num_actions)))
    plan = f"(?:<action_(?:{numbers})>){{{actions.num_poses}}}"
    if mode == "slow":
        head, close, after = template_texts(answer.slow, mode, ("reasoning", "actions"))
        between = _group("reasoning", LINES, captures) + _escaped(close.removeprefix("\n"))
    else:
        template = answer.fast if mode == "fast" else answer.direct
        head, after = template_texts(template, mode, ("actions",))
        between = ""
    return _escaped(head) + between + _group("actions", plan, captures) + _escaped(after)


class _Rules:
    """Rules of one guide."""

    def __init__(self, grammar: Grammar, vocabulary: Sequence[int] | None) -> None:
        self._grammar = grammar
        self._rows = None if vocabulary is None else {of: row for row, of in enumerate(vocabulary)}
        self._segments: dict[type[Segment], Callable[..., str]] = {
            Literal: lambda segment: self._row(segment.ids),
            Actions: lambda _: "plan",
            Free: self._free,
        }

    def lines(self, mode: str) -> Iterator[str]:
        """Yield the rules, the root first."""
        choice, branches = self._grammar.choice, self._grammar.branches
        if choice is None:
            answers = [self._branch(branches[mode])]
        else:
            decided = {"fast": choice.fast_id, "slow": choice.slow_id}
            answers = [
                f"{self._tokens([decided[of]])} {self._branch(branches[of])}"
                for of in (decided if mode == AUTO else (mode,))
            ]
        body = answers[0] if len(answers) == 1 else "(" + " | ".join(answers) + ")"
        yield " ".join(filter(None, ("root ::=", self._row(self._grammar.opening), body)))
        # Written out: XGrammar 0.2.1 crashes where two branches repeat the same rule of tokens.
        yield "plan ::= " + " ".join(["action"] * self._grammar.actions.num_poses)
        yield f"action ::= {self._tokens(self._grammar.action_ids.tolist())}"
        for segment in branches["slow"] if mode in (AUTO, "slow") else ():
            if isinstance(segment, Free):
                yield from self._free_rules(segment)

    def _branch(self, segments: Sequence[Segment]) -> str:
        # The last id is the end token, which is XGrammar's affair.
        written = [*segments[:-1], Literal(_last(segments).ids[:-1])]
        return " ".join(filter(None, (self._segments[type(of)](of) for of in written)))

    def _free(self, segment: Free) -> str:
        """Lines up to one that the closer opens; a line end is a token that ends with one."""
        lines = "(line_end | line_begin text* line_end)*"
        begun = [] if segment.on_new_line else ["text* line_end"]
        return " ".join([*begun, lines, self._row((segment.closer_id, *segment.closing))])

    def _free_rules(self, segment: Free) -> Iterator[str]:
        ends = [
            of
            for of in segment.legal_ids.tolist()
            if token_bytes(segment.tokenizer, of).endswith(b"\n")
        ]
        others = sorted({*ends, *np.flatnonzero(~segment.legal).tolist()})
        yield f"line_end ::= {self._tokens(ends)}"
        yield f"line_begin ::= Exclude{self._tokens([*others, segment.closer_id])}"
        yield f"text ::= Exclude{self._tokens(others)}"

    def _row(self, ids: Sequence[int]) -> str:
        return " ".join(self._tokens([of]) for of in ids)

    def _tokens(self, ids: Sequence[int]) -> str:
        return f"Token({','.join(str(self._output(of)) for of in ids)})"

    def _output(self, token_id: int) -> int:
        """Return the row of the LM head that a token has."""
        if self._rows is None:
            return token_id
        if token_id not in self._rows:
            raise ValueError(f"token {token_id} of the answer is not in the reduced vocabulary")
        return self._rows[token_id]


def _last(segments: Sequence[Segment]) -> Literal:
    """Return the literal that every branch ends with."""
    last = segments[-1]
    assert isinstance(last, Literal)
    return last


def _group(name: str, pattern: str, captures: bool) -> str:
    return f"(?P<{name}>{pattern})" if captures else pattern


def _escaped(text: str) -> str:
    return SPECIAL.sub(r"\\\g<0>", text).replace("\n", r"\n")
