"""Prompt and answer format from the user's AutoVLA training checkout.

The prompts are the messages that `AutoVLA.get_prompt` (models/autovla.py) builds for inference; the
answers are the assistant messages that `__getitem__` (dataset_utils/sft_dataset.py) trains on. Both
are read from the syntax tree; nothing is imported or run.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from autovla_rt.config import AnswerFormat, Prompt, Recipe, Template
from autovla_rt.errors import RecipeError
from autovla_rt.export.recipes.check import check_answers, check_recipe, slots_of
from autovla_rt.export.recipes.messages import MessageReader, node_of
from autovla_rt.export.recipes.paths import follow
from autovla_rt.export.recipes.source import SourceFile
from autovla_rt.export.recipes.values import Text, Value

PROMPT_FILE, PROMPT_CLASS, PROMPT_METHOD = "models/autovla.py", "AutoVLA", "get_prompt"
ANSWER_FILE, ANSWER_METHOD = "dataset_utils/sft_dataset.py", "__getitem__"

MESSAGES = "messages"
"""The variable that holds the conversation in both methods."""

T = TypeVar("T")


def read_checkout(root: Path) -> Recipe:
    """Read the recipe of a training checkout by parsing two of its files.

    Args:
        root: the checkout's root folder.

    Returns:
        The recipe; its provenance maps each file's path inside the checkout to its sha256.

    Raises:
        RecipeError: if a file, class or method is missing, or the source has a shape that is not
            known; the message shows file, line and the line itself.
        StorageError: if the file system refuses to read a file.
    """
    prompts = SourceFile(root, PROMPT_FILE)
    answers = SourceFile(root, ANSWER_FILE)
    try:
        cot, direct = _read_prompts(prompts)
        answer = _read_answers(answers)
    except RecursionError:
        raise RecipeError(f"{root}: expected prompts of ordinary nesting, got too deep.") from None
    recipe = Recipe(
        prompt_cot=cot,
        prompt_direct=direct,
        answer=answer,
        provenance={source.relative: source.sha256 for source in (prompts, answers)},
    )
    check_recipe(recipe, str(root))
    return recipe


class _Conversations:
    """The messages of one method, by chain-of-thought switch."""

    def __init__(self, source: SourceFile, class_name: str | None, method: str) -> None:
        self._source = source
        self._method = source.method(class_name, method)
        self._found: dict[bool, list[Value]] = {True: [], False: []}
        for path in follow(source, self._method):
            messages = path.names.get(MESSAGES)
            if messages is None:
                continue
            if path.use_cot is None:
                raise source.refuse(node_of(messages), _BRANCHES)
            self._found[path.use_cot].append(messages)

    def read(self, use_cot: bool, read: Callable[[Value], T]) -> list[T]:
        """Return the distinct results of `read` over the conversations of one switch position."""
        if not self._found[use_cot]:
            raise self._source.refuse(
                self._method, f"{_BRANCHES}; found none for use_cot = {use_cot}"
            )
        distinct: list[T] = []
        for messages in self._found[use_cot]:
            result = read(messages)
            if result not in distinct:
                distinct.append(result)
        return distinct

    def read_one(self, use_cot: bool, read: Callable[[Value], T]) -> T:
        """Return the one result that all conversations of one switch position agree on."""
        results = self.read(use_cot, read)
        if len(results) > 1:
            raise self._source.refuse(
                node_of(self._found[use_cot][-1]),
                f"the same text on every way with use_cot = {use_cot}, found {len(results)}",
            )
        return results[0]


_BRANCHES = f"{MESSAGES} to be assigned in both branches of `if self.use_cot` (or using_cot)"


def _read_prompts(source: SourceFile) -> tuple[Prompt, Prompt]:
    conversations = _Conversations(source, PROMPT_CLASS, PROMPT_METHOD)
    reader = MessageReader(source)
    return (
        conversations.read_one(True, reader.prompt),
        conversations.read_one(False, reader.prompt),
    )


def _read_answers(source: SourceFile) -> AnswerFormat:
    conversations = _Conversations(source, None, ANSWER_METHOD)
    reader = MessageReader(source)
    direct = conversations.read_one(False, reader.answer)
    by_reasoning: dict[int, list[tuple[Template, Text]]] = {0: [], 1: []}
    for template, text in conversations.read(True, reader.located_answer):
        reasoning = [slot for slot in slots_of(template) if slot.slot == "reasoning"]
        by_reasoning.setdefault(len(reasoning), []).append((template, text))
    fast = _the_one(source, by_reasoning.pop(0), "without reasoning")
    slow = _the_one(source, by_reasoning.pop(1), "with reasoning in one piece")
    answer = AnswerFormat(direct=direct, fast=fast[0], slow=slow[0])
    check_answers(answer, source.place(slow[1].node) + "This answer or one beside it")
    for template, text in (item for items in by_reasoning.values() for item in items):
        if not _is_instance(template, answer.slow):
            raise source.refuse(
                text.node,
                "an answer whose reasoning is in several pieces to begin and end like the one "
                "whose reasoning is in one piece",
            )
    return answer


def _the_one(
    source: SourceFile, found: list[tuple[Template, Text]], kind: str
) -> tuple[Template, Text]:
    """Return the only answer of a kind."""
    if len(found) == 1:
        return found[0]
    method = source.method(None, ANSWER_METHOD)
    raise source.refuse(
        found[-1][1].node if found else method,
        f"one assistant text {kind} where the chain of thought is on, found {len(found)}",
    )


def _is_instance(template: Template, slow: Template) -> bool:
    """Tell whether `template` is `slow` with its reasoning written in several pieces."""
    opening, _, between, *ending = slow
    slots = [slot.slot for slot in slots_of(template)]
    if slots != ["reasoning"] * (len(slots) - 1) + ["actions"] or len(template) < len(slow):
        return False
    first, last, rest = template[0], template[-len(ending) - 1], template[-len(ending) :]
    return (
        isinstance(first, str)
        and isinstance(last, str)
        and first.startswith(str(opening))
        and last.endswith(str(between))
        and rest == tuple(ending)
    )
