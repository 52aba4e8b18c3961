"""A recipe from whatever path the user gives, and the demo's own."""

from __future__ import annotations

from pathlib import Path

import pytest

from autovla_rt.config import Recipe, Slot, Video
from autovla_rt.errors import AutovlaError, RecipeError
from autovla_rt.export.recipe import read_checkout, read_recipe, read_toml, render_recipe
from autovla_rt.export.recipes.check import opening, slots_of

CHECKOUT = Path(__file__).parent / "fixtures" / "checkout"
DEMO = Path(__file__).parents[2] / "demo" / "recipe.toml"


def test_a_folder_is_a_checkout_and_a_toml_file_a_recipe() -> None:
    assert read_recipe(CHECKOUT) == read_checkout(CHECKOUT)
    assert read_recipe(DEMO) == read_toml(DEMO)


@pytest.mark.parametrize(
    ("name", "found"), [("recipe.json", "another kind of file"), ("nowhere", "nothing there")]
)
def test_any_other_path_is_refused(tmp_path: Path, name: str, found: str) -> None:
    (tmp_path / "recipe.json").write_text("{}", encoding="utf-8")
    with pytest.raises(RecipeError, match=found):
        read_recipe(tmp_path / name)


def test_a_folder_without_the_files_is_refused(tmp_path: Path) -> None:
    with pytest.raises(AutovlaError, match=r"models/autovla\.py: expected this file"):
        read_recipe(tmp_path)


def test_an_imported_recipe_survives_toml_and_json(tmp_path: Path) -> None:
    recipe = read_checkout(CHECKOUT)
    path = tmp_path / "imported.toml"
    path.write_text(render_recipe(recipe), encoding="utf-8")
    again = read_recipe(path)
    assert set(again.provenance) == {*recipe.provenance, "imported.toml"}
    assert again.model_copy(update={"provenance": recipe.provenance}) == recipe
    assert Recipe.model_validate_json(recipe.model_dump_json()) == recipe


def test_the_demo_has_the_structure_of_autovla() -> None:
    recipe = read_toml(DEMO)
    for prompt in (recipe.prompt_cot, recipe.prompt_direct):
        kinds = ["video" if isinstance(part, Video) else "text" for part in prompt.user]
        assert kinds == ["text", "text", "video", "text", "video", "text", "video", "text"]
    assert recipe.prompt_cot.user == recipe.prompt_direct.user
    assert len(recipe.prompt_cot.system) > len(recipe.prompt_direct.system)
    fast, slow = opening(recipe.answer.fast), opening(recipe.answer.slow)
    assert fast.split()[:4] == slow.split()[:4]
    assert fast.split()[4] != slow.split()[4]
    assert recipe.answer.slow[2:] == ("\n</think>" + _after_think(fast), *recipe.answer.fast[1:])
    assert opening(recipe.answer.direct) == _after_think(fast).lstrip("\n")


def test_the_demo_is_brief() -> None:
    prompt = read_toml(DEMO).prompt_cot
    parts = [part for part in prompt.user if not isinstance(part, Video)]
    words = " ".join(
        [prompt.system, *(part for text in parts for part in text if not isinstance(part, Slot))]
    ).split()
    assert 20 <= len(words) <= 90
    assert [slot.slot for text in parts for slot in slots_of(text)] == [
        "velocity",
        "acceleration",
        "instruction",
    ]


def _after_think(text: str) -> str:
    return text.partition("</think>")[2]
