"""The rules of every recipe, where no reader stands before them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from autovla_rt.config import Recipe, Slot, Template, Video
from autovla_rt.errors import RecipeError
from autovla_rt.export.recipes.check import check_recipe, join_template
from autovla_rt.export.recipes.toml import read_toml

RECIPE = read_toml(Path(__file__).parents[3] / "demo" / "recipe.toml")
ACTIONS, REASONING = Slot(slot="actions"), Slot(slot="reasoning")


def with_answer(**answers: Template) -> Recipe:
    return RECIPE.model_copy(update={"answer": RECIPE.answer.model_copy(update=answers)})


def with_prompt(**fields: Any) -> Recipe:
    prompt = RECIPE.prompt_direct.model_copy(update=fields)
    return RECIPE.model_copy(update={"prompt_direct": prompt})


VIDEO_LESS = tuple(part for part in RECIPE.prompt_direct.user if not isinstance(part, Video))

BROKEN = {
    "no videos": (with_prompt(user=VIDEO_LESS), "got none"),
    "fourth video": (
        with_prompt(user=(*RECIPE.prompt_direct.user, Video(camera="front"))),
        "got front, front_left, front_right, front",
    ),
    "empty system": (with_prompt(system=""), "expected a system text"),
    "empty part": (with_prompt(user=((), *RECIPE.prompt_direct.user)), "text in every text part"),
    "surrogate": (with_prompt(system="\ud800"), "lone surrogate at character 0"),
    "markup in an answer": (with_answer(direct=(ACTIONS, "<|im_end|>")), r"got <\|im_end\|>"),
    "actions twice": (with_answer(direct=(ACTIONS, " ", ACTIONS)), "got actions, actions"),
    "no actions": (with_answer(fast=("a",)), "the fast answer to hold actions, got none"),
    "actions before reasoning": (
        with_answer(slow=("b", ACTIONS, "c", REASONING)),
        "got actions, reasoning",
    ),
    "nothing ends the reasoning": (
        with_answer(slow=("b", REASONING, ACTIONS)),
        "text between reasoning and actions",
    ),
    "fast begins like slow": (
        with_answer(fast=("ab", ACTIONS), slow=("a", REASONING, "c", ACTIONS)),
        "to differ in the text before the reasoning",
    ),
    "slow begins like fast": (
        with_answer(fast=("a", ACTIONS), slow=("ab", REASONING, "c", ACTIONS)),
        "to differ in the text before the reasoning",
    ),
    "format on actions": (
        with_answer(direct=(Slot(slot="actions", format="s"),)),
        "expected {actions} without a format",
    ),
}


def test_the_demo_is_sound() -> None:
    check_recipe(RECIPE, "demo")


@pytest.mark.parametrize(("recipe", "expected"), BROKEN.values(), ids=BROKEN)
def test_a_broken_rule_is_named_with_its_source(recipe: Recipe, expected: str) -> None:
    with pytest.raises(RecipeError, match=expected) as caught:
        check_recipe(recipe, "the source")
    assert str(caught.value).startswith("the source, ")


def test_join_template_joins_neighbours_and_drops_empty_texts() -> None:
    assert join_template(["", "a", "b", ACTIONS, "", ACTIONS, "c", ""]) == (
        "ab",
        ACTIONS,
        ACTIONS,
        "c",
    )
