"""What every recipe must satisfy, however it was written: AutoVLA's structure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from autovla_rt.config import CAMERAS, AnswerFormat, Prompt, Recipe, Slot, Template, Video
from autovla_rt.errors import RecipeError

NUMBERS = ("velocity", "acceleration")
"""Slots that hold a number and therefore need a format specification."""

_CHAT_MARKUP = re.compile(r"<\|\w+\|>")

PROMPT_SLOTS = (*NUMBERS, "instruction")

ANSWER_SLOTS: Mapping[str, tuple[str, ...]] = {
    "direct": ("actions",),
    "fast": ("actions",),
    "slow": ("reasoning", "actions"),
}
"""The slots of each answer, in order."""


def check_recipe(recipe: Recipe, source: str) -> None:
    """Verify that `recipe` has AutoVLA's structure.

    Both prompts hold the three cameras in order and velocity, acceleration and instruction once
    each; the answers hold the slots of `ANSWER_SLOTS`; `fast` and `slow` part before the reasoning.

    Args:
        recipe: the recipe to check.
        source: where it came from, for the message.

    Raises:
        RecipeError: on the first rule that is broken.
    """
    check_prompt(recipe.prompt_cot, f"{source}, prompt with chain of thought")
    check_prompt(recipe.prompt_direct, f"{source}, prompt without chain of thought")
    check_answers(recipe.answer, f"{source}, answers")


def check_prompt(prompt: Prompt, where: str) -> None:
    """Verify one prompt: a system text, three videos in camera order, each of three slots once.

    Raises:
        RecipeError: naming `where`, what was expected and what was got.
    """
    templates = [part for part in prompt.user if not isinstance(part, Video)]
    if not prompt.system:
        raise RecipeError(f"{where}: expected a system text, got an empty one.")
    if not all(templates):
        raise RecipeError(f"{where}: expected text in every text part, got an empty one.")
    cameras = tuple(part.camera for part in prompt.user if isinstance(part, Video))
    if cameras != CAMERAS:
        raise RecipeError(
            f"{where}: expected the videos {', '.join(CAMERAS)} in this order, "
            f"got {', '.join(cameras) or 'none'}."
        )
    slots = [slot for template in templates for slot in slots_of(template)]
    if sorted(slot.slot for slot in slots) != sorted(PROMPT_SLOTS):
        raise RecipeError(
            f"{where}: expected each of {', '.join(PROMPT_SLOTS)} once, got {_names(slots)}."
        )
    _check_formats(slots, where)
    _check_texts([(prompt.system,), *templates], where)


def check_answers(answer: AnswerFormat, where: str) -> None:
    """Verify the three answers: their slots, and that `fast` and `slow` can be told apart.

    Raises:
        RecipeError: naming `where`, what was expected and what was got.
    """
    for name, expected in ANSWER_SLOTS.items():
        slots = slots_of(getattr(answer, name))
        if tuple(slot.slot for slot in slots) != expected:
            raise RecipeError(
                f"{where}: expected the {name} answer to hold {' then '.join(expected)}, "
                f"got {_names(slots)}."
            )
        _check_formats(slots, where)
    _check_texts((answer.direct, answer.fast, answer.slow), where)
    fast, slow = opening(answer.fast), opening(answer.slow)
    if fast.startswith(slow) or slow.startswith(fast):
        raise RecipeError(
            f"{where}: expected the fast and the slow answer to differ in the text before the "
            f"reasoning, because the decision whether to reason is made there; got {fast!r} and "
            f"{slow!r}."
        )
    if not _between(answer.slow, "reasoning", "actions"):
        raise RecipeError(
            f"{where}: expected text between reasoning and actions in the slow answer, because it "
            f"ends the reasoning; got none."
        )


def slots_of(template: Template) -> list[Slot]:
    """Return the slots of a template in order."""
    return [part for part in template if isinstance(part, Slot)]


def opening(template: Template) -> str:
    """Return the literal text before the first slot."""
    return template[0] if template and isinstance(template[0], str) else ""


def join_template(parts: Iterable[str | Slot]) -> Template:
    """Return the parts as a template: neighbouring texts joined, empty ones dropped."""
    template: list[str | Slot] = []
    for part in parts:
        if isinstance(part, str) and template and isinstance(template[-1], str):
            template[-1] += part
        elif part != "":
            template.append(part)
    return tuple(template)


def _check_formats(slots: Iterable[Slot], where: str) -> None:
    for slot in slots:
        if slot.slot not in NUMBERS:
            if slot.format:
                raise RecipeError(
                    f"{where}: expected {{{slot.slot}}} without a format, because it is text; got "
                    f"{slot.format!r}."
                )
            continue
        try:
            usable = bool(slot.format) and bool(format(1.0, slot.format))
        except ValueError:
            usable = False
        if not usable:
            raise RecipeError(
                f"{where}: expected a number format for {{{slot.slot}}}, such as "
                f"{{{slot.slot}:.3f}}; got {slot.format!r}."
            )


def _check_texts(templates: Iterable[Template], where: str) -> None:
    for text in (part for template in templates for part in template if isinstance(part, str)):
        if markup := _CHAT_MARKUP.search(text):
            raise RecipeError(
                f"{where}: expected text without chat markup, because the chat template adds it; "
                f"got {markup[0]}."
            )
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise RecipeError(
                f"{where}: expected text that UTF-8 can encode, got a lone surrogate at character "
                f"{error.start} of {text!r}."
            ) from None


def _between(template: Template, first: str, second: str) -> bool:
    order = [part.slot if isinstance(part, Slot) else "" for part in template]
    return order.index(second) - order.index(first) > 1


def _names(slots: Iterable[Slot]) -> str:
    return ", ".join(slot.slot for slot in slots) or "none"
