"""The two tokens that decide between a fast and a slow answer."""

from __future__ import annotations

from tokenizers import Tokenizer

from autovla_rt.config import AnswerFormat, Slot, Template
from autovla_rt.errors import RecipeError

FILLED = {"reasoning": "Ahead.", "actions": "<action_0>"}
"""The choice lies before both slots; the text behind it must only be cut as ever."""


def choice_ids(tokenizer: Tokenizer, answer: AnswerFormat) -> tuple[int, int]:
    """Return the first ids in which the fast and the slow answer differ.

    Raises:
        RecipeError: one answer is the beginning of the other.
    """
    fast, slow = (
        tokenizer.encode(_filled(template), add_special_tokens=False).ids
        for template in (answer.fast, answer.slow)
    )
    for ids in zip(fast, slow, strict=False):
        if ids[0] != ids[1]:
            return ids
    raise RecipeError(
        "The fast and the slow answer must differ in a token, one is the beginning of the other: "
        "correct the recipe's answer, or build without chain of thought."
    )


def _filled(template: Template) -> str:
    return "".join(FILLED[part.slot] if isinstance(part, Slot) else part for part in template)
