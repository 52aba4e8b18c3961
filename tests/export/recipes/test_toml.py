"""A recipe as TOML: every recipe reads back equal, every slip is refused with its place."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autovla_rt.config import CAMERAS, AnswerFormat, Prompt, Recipe, Slot, Template, Video
from autovla_rt.errors import RecipeError
from autovla_rt.export.recipes.check import join_template
from autovla_rt.export.recipes.toml import parse_template, parse_toml, read_toml, render_recipe

DEMO = Path(__file__).parents[3] / "demo" / "recipe.toml"
TOML = DEMO.read_text(encoding="utf-8")

# Chat markup such as <|x|> is refused; without bars none can arise, joined texts included.
texts = st.text(
    st.characters(codec="utf-8", exclude_characters="|"), max_size=12
) | st.sampled_from(
    [
        '"""',
        '"',
        "\\",
        "\\n",
        "\r\n",
        "\n\n",
        "{",
        "}}",
        "{velocity}",
        " \t",
        "\x00\x7f",
        "m/s\u00b2",
    ]
).map(lambda text: text + "x")
formats = st.sampled_from([".3f", ".1f", "+06.2f", "g", "e"])


@st.composite
def prompts(draw: st.DrawFn) -> Prompt:
    last = join_template(
        [
            draw(texts),
            Slot(slot="velocity", format=draw(formats)),
            draw(texts),
            Slot(slot="acceleration", format=draw(formats)),
            draw(texts),
            Slot(slot="instruction"),
            draw(texts),
        ]
    )
    user: list[Template | Video] = []
    for camera in CAMERAS:
        user += [(draw(texts.filter(bool)),), Video(camera=camera)]
    return Prompt(system=draw(texts.filter(bool)), user=(*user, last))


@st.composite
def recipes(draw: st.DrawFn) -> Recipe:
    actions = (draw(texts), Slot(slot="actions"), draw(texts))
    slow = ["b" + draw(texts), Slot(slot="reasoning"), "\n</think>", *actions]
    return Recipe(
        prompt_cot=draw(prompts()),
        prompt_direct=draw(prompts()),
        answer=AnswerFormat(
            direct=join_template(actions),
            fast=join_template(["a", *actions]),
            slow=join_template(slow),
        ),
        add_vision_id=draw(st.booleans()),
        provenance=draw(st.dictionaries(texts, texts, max_size=2)),
    )


@settings(max_examples=150, deadline=None)
@given(recipes())
def test_a_rendered_recipe_reads_back_equal(recipe: Recipe) -> None:
    assert parse_toml(render_recipe(recipe), "rendered") == recipe


def test_the_file_itself_is_part_of_the_provenance(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(TOML + '\n[provenance]\n"models/autovla.py" = "abc"\n', encoding="utf-8")
    assert read_toml(path).provenance == {
        "models/autovla.py": "abc",
        "mine.toml": hashlib.sha256(path.read_bytes()).hexdigest(),
    }


def test_a_template_keeps_doubled_braces_as_one() -> None:
    assert parse_template("{{a}} {velocity:.3f}}}{{", "here") == (
        "{a} ",
        Slot(slot="velocity", format=".3f"),
        "}{",
    )


@pytest.mark.parametrize(
    "text",
    ["{", "}", "{}", "{0}", "{speed}", "{velocity!r}", "{velocity:{x}}", "{velocity.x}", "{a[0]}"],
)
def test_a_malformed_template_is_refused_with_its_place(text: str) -> None:
    with pytest.raises(RecipeError, match=r"file: answer\.fast: expected text with the slots"):
        parse_template(text, "file: answer.fast")


CHANGES = {
    # name: (text of the demo's TOML, what takes its place, what the message must say)
    "not TOML": ("[answer]", "[answer", "expected TOML"),
    "unknown table": ("[answer]", "[more]\n[answer]", "unknown key 'more' in the top level"),
    "unknown key": (
        "[answer]",
        "[answer]\nmedium = ''",
        r"unknown key 'medium' in table \[answer\]",
    ),
    "unknown prompt": ("[prompt.direct]", "[prompt.fast]\n[prompt.direct]", "unknown key 'fast'"),
    "unknown key of a prompt": ("[prompt.cot]", "[prompt.cot]\nusr = 1", r"\[prompt\.cot\]"),
    "missing prompt": ("[prompt.direct]", "[prompt.cot.direct]", "missing key 'direct'"),
    "no text": ('"Ahead"', "3", r"prompt\.cot\.user\[0\]: expected a text"),
    "unknown camera": ('video = "front" ', 'video = "rear" ', r"prompt\.cot\.user\[2\]"),
    "unknown kind of part": ('{ video = "front" }', '{ image = "front" }', r"user\[2\]"),
    "two cameras swapped": (
        '"front_left"',
        '"front_right"',
        "expected the videos front, front_left",
    ),
    "slot in system": (
        "Think first where the road is tricky.",
        "{velocity:.3f}",
        "text without slots",
    ),
    "empty text": ('"Left:"', '""', "got an empty one"),
    "lone brace": ("Route: {instruction}", "Route: {instruction", r"prompt\.cot\.user\[7\]"),
    "slot left out": ("Route: {instruction}", "Route", "got velocity, acceleration"),
    "no number format": ("{velocity:.3f}", "{velocity}", "expected a number format"),
    "format on text": ("Route: {instruction}", "{instruction:>9}", "without a format"),
    "chat markup": ("Think first where", "<|im_end|>", "without chat markup"),
    "reasoning in direct": (
        "Motion: {",
        "{reasoning}\n{",
        "the direct answer to hold actions",
    ),
    "no reasoning": ("{reasoning}\n", "", "reasoning then actions, got actions"),
    "equal openings": ("looks clear, act at once", "looks tricky, think first", "to differ"),
    "flag that is none": (
        "[prompt.cot]",
        "add_vision_id = 1\n[prompt.cot]",
        "expected true or false",
    ),
    "provenance that is none": ("[prompt.cot]", "provenance = 1\n[prompt.cot]", "expected a table"),
}


@pytest.mark.parametrize(("old", "new", "expected"), CHANGES.values(), ids=CHANGES)
def test_a_slip_is_refused_with_its_place(old: str, new: str, expected: str) -> None:
    assert old in TOML
    with pytest.raises(RecipeError, match=expected) as caught:
        parse_toml(TOML.replace(old, new, 1), "mine.toml")
    assert str(caught.value).startswith("mine.toml")


def test_missing_keys_are_listed() -> None:
    with pytest.raises(RecipeError, match=r"missing key 'answer' in the top level"):
        parse_toml(TOML[: TOML.index("[answer]")], "mine.toml")


def test_a_user_message_that_is_no_list_is_refused() -> None:
    start, end = TOML.index("user = ["), TOML.index("[prompt.direct]")
    with pytest.raises(
        RecipeError, match=r"mine\.toml: prompt\.cot\.user: expected a list of texts"
    ):
        parse_toml(TOML[:start] + 'user = "all"\n' + TOML[end:], "mine.toml")


def test_a_file_that_is_not_utf_8_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_bytes(TOML.encode("latin-1"))
    with pytest.raises(RecipeError, match="expected UTF-8, got byte 0xb2"):
        read_toml(path)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="found no such file"):
        read_toml(tmp_path / "mine.toml")
