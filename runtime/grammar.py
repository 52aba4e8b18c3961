r"""The answer's grammar: which ids are forced, where one is chosen, and from which ids.

An answer is a row of segments. They are compiled from whole rendered answers, because the borders
of segments are not borders of tokens: Qwen's tokenizer cuts `<think>` and a line end into `<th`,
`ink`, `>\n`, and a full stop before the closing tag is the one token `.\n`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer, decoders

from autovla_rt.config import ActionSpace, AnswerFormat, Slot, Template
from autovla_rt.errors import CheckpointError, RecipeError
from autovla_rt.runtime.reasoning import CLOSER, Free, Ids

PROBES = (
    "Ahead.",
    "ahead",
    "1) 20",
    "- a:",
    '"Go?"',
    "(x)",
    "*b* ",
    "'s!",
    "</b>",
    "日。",
    "é",
    "🚗",
)
"""Reasonings that begin and end in many ways, to find the borders that depend on none of them."""


@dataclass(frozen=True)
class Literal:
    """Ids that are forced; they ride along with the next forward pass."""

    ids: Ids

    @property
    def positions(self) -> int:
        """KV positions that this segment takes."""
        return len(self.ids)


@dataclass(frozen=True)
class Choice:
    """The one position that decides between the fast and the slow answer."""

    fast_id: int
    slow_id: int


@dataclass(frozen=True)
class Actions:
    """`count` action tokens with nothing between."""

    count: int

    @property
    def positions(self) -> int:
        """KV positions that this segment takes: the last action needs no pass."""
        return self.count - 1


Segment = Literal | Free | Actions


@dataclass(frozen=True, eq=False)
class Grammar:
    """All answers of one checkpoint.

    Attributes:
        opening: Forced ids that every answer begins with.
        choice: The fast/slow decision behind the opening; None without chain of thought.
        branches: The segments that follow, by mode: "direct" alone without chain of thought, else
            "fast" and "slow". Each ends with Actions and a Literal that holds the end token.
        actions: The action vocabulary.
        action_ids: [num_actions] int64 vocabulary ids of the actions.
    """

    opening: Ids
    choice: Choice | None
    branches: dict[str, tuple[Segment, ...]]
    actions: ActionSpace
    action_ids: NDArray[np.int64]

    def positions(self, mode: str) -> int:
        """Count the KV positions of this mode's answer behind the prompt, without reasoning."""
        decision = 0 if self.choice is None else 1
        segments = self.branches[mode][:-1]  # the text behind the last action needs no pass
        return len(self.opening) + decision + sum(segment.positions for segment in segments)


def render(template: Template, **slots: str | float) -> str:
    """Fill a template's slots with values and join everything without separators.

    Raises:
        RecipeError: The template has a slot that no value was given for.
    """
    parts = []
    for part in template:
        if not isinstance(part, Slot):
            parts.append(part)
        elif part.slot in slots:
            parts.append(format(slots[part.slot], part.format))
        else:
            raise RecipeError(
                f"The template has a slot {{{part.slot}}}, but only {sorted(slots)} can be filled "
                "here: correct the recipe's prompt or answer."
            )
    return "".join(parts)


def compile_answer(
    tokenizer: Tokenizer,
    answer: AnswerFormat,
    *,
    use_cot: bool,
    actions: ActionSpace,
    end_token_id: int,
) -> Grammar:
    """Compile a recipe's answers into forced ids and choices.

    Args:
        tokenizer: The checkpoint's byte-level BPE tokenizer with its action tokens.
        answer: The answers as templates.
        use_cot: Compile `fast` and `slow`; else `direct`.
        actions: Where the action tokens lie; the vocabulary ends behind them.
        end_token_id: What the model writes behind the answer (<|im_end|>).

    Raises:
        CheckpointError: The tokenizer is no byte-level BPE, or its action tokens are not where
            `actions` says.
        RecipeError: A template does not have the documented shape, or its borders cannot be found
            in this tokenizer's ids.
    """
    compiler = _Compiler(tokenizer, actions, end_token_id)
    return compiler.chain_of_thought(answer) if use_cot else compiler.direct(answer)


class _Compiler:
    """What the compilation of every branch shares."""

    def __init__(self, tokenizer: Tokenizer, actions: ActionSpace, end_token_id: int) -> None:
        _check_tokenizer(tokenizer, actions)
        self.tokenizer = tokenizer
        self.actions = actions
        self.end_token_id = end_token_id

    def direct(self, answer: AnswerFormat) -> Grammar:
        template_texts(answer.direct, "direct", ("actions",))
        before, after = self._around_actions(answer.direct)
        return self._grammar(before, None, {"direct": self._plan(after)})

    def chain_of_thought(self, answer: AnswerFormat) -> Grammar:
        template_texts(answer.fast, "fast", ("actions",))
        head, close, _ = template_texts(answer.slow, "slow", ("reasoning", "actions"))
        fast, after_fast = self._around_actions(answer.fast)
        probed = [self._around_actions(answer.slow, reasoning=probe) for probe in PROBES]
        befores, after_slow = [before for before, _ in probed], probed[0][1]
        slow = self._slow_opening(befores, head)
        at = _choice_position(fast, slow)
        branches: dict[str, tuple[Segment, ...]] = {
            "fast": (Literal(fast[at + 1 :]), *self._plan(after_fast)),
            "slow": (
                Literal(slow[at + 1 :]),
                self._free(befores, head, close),
                *self._plan(after_slow),
            ),
        }
        return self._grammar(fast[:at], Choice(fast[at], slow[at]), branches)

    def _grammar(
        self, opening: Ids, choice: Choice | None, branches: dict[str, tuple[Segment, ...]]
    ) -> Grammar:
        start, count = self.actions.action_start_id, self.actions.num_actions
        ids = np.arange(start, start + count, dtype=np.int64)
        return Grammar(opening, choice, branches, self.actions, ids)

    def _plan(self, after: Ids) -> tuple[Segment, ...]:
        return Actions(self.actions.num_poses), Literal((*after, self.end_token_id))

    def _around_actions(self, template: Template, **slots: str) -> tuple[Ids, Ids]:
        """Encode a whole answer; returns the ids before and behind its actions."""
        first, count = self.actions.action_start_id, self.actions.num_poses
        found = set()
        for step in (1, -1):  # two plans: the literals may not depend on the actions
            plan = [(step * i) % self.actions.num_actions for i in range(1, count + 1)]
            text = render(template, actions="".join(map(_action_token, plan)), **slots)
            ids = self._encode(text)
            actions = [first + index for index in plan]
            at = next((i for i, token_id in enumerate(ids) if token_id >= first), len(ids))
            in_a_row = [i for i in ids if i >= first] == actions == list(ids[at : at + count])
            if not in_a_row or self._decode(ids) != text:
                raise RecipeError(
                    f"The answer {text!r} must come back from the tokenizer with {count} action "
                    f"tokens in a row, it comes back as {self._decode(ids)!r}: correct the answer "
                    "in the recipe (text in Unicode form NFC), or use the checkpoint's tokenizer."
                )
            found.add((ids[:at], ids[at + count :]))
        if len(found) > 1:
            raise RecipeError(f"The tokens around the actions depend on the actions: {found}.")
        return found.pop()

    def _slow_opening(self, befores: Sequence[Ids], head: str) -> Ids:
        opening = _common_prefix(befores)
        if self._decode(opening) != head:
            raise RecipeError(
                f"The slow answer's text before {{reasoning}}, {head!r}, must end where a token "
                "ends whatever the reasoning is, that is with a line end; the tokens common to all "
                f"reasonings spell {self._decode(opening)!r}."
            )
        return opening

    def _free(self, befores: Sequence[Ids], head: str, close: str) -> Free:
        if not close.startswith("\n" + CLOSER):
            raise RecipeError(
                f"The slow answer's text behind {{reasoning}} must begin with a line end and "
                f"{CLOSER!r} (reasoning ends where that token opens a line), it is {close!r}."
            )
        tail = _common_prefix([before[::-1] for before in befores])[::-1]
        while tail and self._decode(tail) != close[1:]:
            tail = tail[1:]
        joined = self._encode(close)
        closer_id = self.tokenizer.token_to_id(CLOSER)
        if tail[:1] != (closer_id,) or joined[-len(tail) :] != tail:
            raise RecipeError(
                f"The slow answer's text behind {{reasoning}}, {close!r}, must have {CLOSER!r} as "
                "a token of its own behind the line end, it is cut into "
                f"{[self.tokenizer.id_to_token(i) for i in joined]}: use the checkpoint's own "
                "tokenizer."
            )
        legal = self._text_tokens()
        return Free(
            tokenizer=self.tokenizer,
            closer_id=closer_id,
            closing=tail[1:],
            joined=joined,
            close_text=close,
            on_new_line=head.endswith("\n"),
            legal=legal,
            legal_ids=np.flatnonzero(legal).astype(np.int64),
        )

    def _text_tokens(self) -> NDArray[np.bool_]:
        """Mark the ids of the base vocabulary, without added tokens and the end token."""
        legal = np.zeros(self.actions.action_start_id + self.actions.num_actions, dtype=np.bool_)
        legal[list(self.tokenizer.get_vocab(with_added_tokens=False).values())] = True
        legal[list(self.tokenizer.get_added_tokens_decoder())] = False
        legal[self.end_token_id] = False
        return legal

    def _encode(self, text: str) -> Ids:
        return tuple(self.tokenizer.encode(text, add_special_tokens=False).ids)

    def _decode(self, ids: Ids) -> str:
        text: str = self.tokenizer.decode(list(ids), skip_special_tokens=False)
        return text


def _check_tokenizer(tokenizer: Tokenizer, actions: ActionSpace) -> None:
    if not isinstance(tokenizer.decoder, decoders.ByteLevel):
        raise CheckpointError(
            "The tokenizer must be byte-level BPE as Qwen's is, its decoder is "
            f"{tokenizer.decoder}: use the tokenizer.json that was saved with the checkpoint."
        )
    last = actions.num_actions - 1
    expected = {
        _action_token(0): actions.action_start_id,
        _action_token(last): actions.action_start_id + last,
    }
    got = {token: tokenizer.token_to_id(token) for token in expected}
    highest = max(tokenizer.get_added_tokens_decoder(), default=0)
    if got != expected or highest != actions.action_start_id + last:
        raise CheckpointError(
            f"The tokenizer's added tokens must end with the actions {expected}, it has {got} and "
            f"the highest id {highest}: use the tokenizer that was saved with the checkpoint, or "
            "correct tokens.action_start_id in its config."
        )


def _choice_position(fast: Ids, slow: Ids) -> int:
    at = len(_common_prefix([fast, slow]))
    if at in (len(fast), len(slow)):
        raise RecipeError(
            "The fast and the slow answer must differ in a token before the reasoning, their first "
            f"{at} tokens are the same: correct the recipe's answer, or build without chain of "
            "thought."
        )
    return at


def template_texts(template: Template, name: str, expected: tuple[str, ...]) -> list[str]:
    """Return the literal texts before, between and behind the slots, which must be the expected.

    Raises:
        RecipeError: the slots are others; `name` says of which answer.
    """
    texts, slots = [""], []
    for part in template:
        if isinstance(part, Slot):
            slots.append(part.slot)
            texts.append("")
        else:
            texts[-1] += part
    if tuple(slots) != expected:
        raise RecipeError(
            f"The {name} answer must have the slots {expected} in this order, it has "
            f"{tuple(slots)}: correct the recipe's answer."
        )
    return texts


def _common_prefix(rows: Sequence[Ids]) -> Ids:
    length = 0
    for column in zip(*rows, strict=False):
        if len(set(column)) > 1:
            break
        length += 1
    return rows[0][:length]


def _action_token(index: int) -> str:
    return f"<action_{index}>"
