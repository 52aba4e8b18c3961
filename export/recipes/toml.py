"""A recipe as TOML: pleasant to write by hand, and what an imported recipe is printed as.

    [prompt.cot]                    # and [prompt.direct]
    system = "..."
    user = ["text", { video = "front" }, ..., "{velocity:.3f} {acceleration:.3f} {instruction}"]

    [answer]
    direct = "... {actions} ..."    # and fast; slow holds {reasoning} and {actions}

Texts are byte-exact. Braces mark slots in every text; a literal brace is doubled. `add_vision_id`
(top level, default false) and `[provenance]` (path -> sha256) are optional.
"""

from __future__ import annotations

import hashlib
import re
import tomllib
from collections.abc import Collection, Mapping
from pathlib import Path
from string import Formatter
from typing import Any, get_args

from autovla_rt.config import CAMERAS, AnswerFormat, Prompt, Recipe, Slot, Template, Video
from autovla_rt.errors import RecipeError, StorageError
from autovla_rt.export.recipes.check import check_recipe, join_template

SLOTS: tuple[str, ...] = get_args(Slot.model_fields["slot"].annotation)


def read_toml(path: Path) -> Recipe:
    """Read a recipe from a TOML file.

    Returns:
        The recipe; its provenance is the file's `[provenance]` table plus the file's own sha256.

    Raises:
        RecipeError: if the file is missing, not UTF-8, not TOML, has unknown or missing keys, a
            malformed template, or breaks a rule of `check_recipe`.
        StorageError: if the file system refuses to read it.
    """
    try:
        data = path.read_bytes()
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        raise RecipeError(f"{path}: expected a recipe in TOML, found no such file.") from None
    except OSError as error:
        raise StorageError(f"{path}: cannot be read ({error.strerror}).") from error
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise RecipeError(
            f"{path}: expected UTF-8, got byte {data[error.start]:#04x} at offset {error.start}. "
            f"Save the file as UTF-8."
        ) from None
    recipe = parse_toml(text, str(path))
    digest = hashlib.sha256(data).hexdigest()
    return recipe.model_copy(update={"provenance": {**recipe.provenance, path.name: digest}})


def parse_toml(text: str, source: str) -> Recipe:
    """Return the recipe that a TOML text describes; `source` names it in messages.

    Raises:
        RecipeError: as `read_toml`.
    """
    try:
        document = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise RecipeError(f"{source}: expected TOML, got: {error}.") from None
    root = _Table(document, source, "")
    root.expect(("prompt", "answer"), optional=("add_vision_id", "provenance"))
    prompt, answer = root.table("prompt"), root.table("answer")
    prompt.expect(("cot", "direct"))
    answer.expect(tuple(AnswerFormat.model_fields))
    recipe = Recipe(
        prompt_cot=_prompt(prompt.table("cot")),
        prompt_direct=_prompt(prompt.table("direct")),
        answer=AnswerFormat(**{name: answer.template(name) for name in AnswerFormat.model_fields}),
        add_vision_id=root.flag("add_vision_id"),
        provenance=root.texts("provenance"),
    )
    check_recipe(recipe, source)
    return recipe


def render_recipe(recipe: Recipe) -> str:
    """Return `recipe` as TOML text that `parse_toml` reads back equal, provenance included."""
    sections = [
        "# Texts are byte-exact. Braces mark slots; a literal brace is doubled.\n"
        f"add_vision_id = {str(recipe.add_vision_id).lower()}\n",
        _render_prompt("cot", recipe.prompt_cot),
        _render_prompt("direct", recipe.prompt_direct),
        "[answer]\n"
        + "".join(
            f"{name} = {_quote(_render_template(getattr(recipe.answer, name)))}\n"
            for name in AnswerFormat.model_fields
        ),
    ]
    if recipe.provenance:
        entries = (f"{_quote_key(k)} = {_quote(v)}\n" for k, v in sorted(recipe.provenance.items()))
        sections.append("[provenance]\n" + "".join(entries))
    return "\n".join(sections)


class _Table:
    """One TOML table with its place, so that every refusal names both."""

    def __init__(self, values: Mapping[str, Any], source: str, name: str) -> None:
        self._values = values
        self._source = source
        self._name = name

    def expect(self, required: Collection[str], optional: Collection[str] = ()) -> None:
        """Refuse unknown and missing keys."""
        for problem, keys in (
            ("unknown key", sorted(set(self._values) - {*required, *optional})),
            ("missing key", sorted(set(required) - set(self._values))),
        ):
            if keys:
                known = ", ".join((*required, *(f"{key} (optional)" for key in optional)))
                place = f"table [{self._name}]" if self._name else "the top level"
                raise RecipeError(
                    f"{self._source}: {problem} {', '.join(map(repr, keys))} in {place}. "
                    f"Expected {known}."
                )

    def place(self, key: str) -> str:
        """Return the file and the dotted name of a key."""
        return f"{self._source}: {self._name}.{key}" if self._name else f"{self._source}: {key}"

    def typed(self, key: str, kind: type, description: str) -> Any:
        """Return a value after a check of its type."""
        value = self._values[key]
        if not isinstance(value, kind):
            raise RecipeError(f"{self.place(key)}: expected {description}, got {value!r}.")
        return value

    def table(self, key: str) -> _Table:
        values = self.typed(key, dict, "a table")
        return _Table(values, self._source, f"{self._name}.{key}" if self._name else key)

    def template(self, key: str) -> Template:
        return parse_template(self.typed(key, str, "text"), self.place(key))

    def flag(self, key: str) -> bool:
        return key in self._values and bool(self.typed(key, bool, "true or false"))

    def texts(self, key: str) -> dict[str, str]:
        table = self.table(key) if key in self._values else _Table({}, self._source, key)
        return {name: table.typed(name, str, "text") for name in table._values}


def _prompt(table: _Table) -> Prompt:
    table.expect(("system", "user"))
    system = table.template("system")
    if any(isinstance(part, Slot) for part in system):
        raise RecipeError(
            f"{table.place('system')}: expected text without slots, because it is the part of the "
            f"prompt that never changes. Double a brace that is meant literally."
        )
    parts = table.typed("user", list, 'a list of texts and { video = "CAMERA" }')
    return Prompt(
        system="".join(str(part) for part in system),
        user=tuple(_part(part, f"{table.place('user')}[{i}]") for i, part in enumerate(parts)),
    )


def _part(part: object, place: str) -> Template | Video:
    if isinstance(part, str):
        return parse_template(part, place)
    if isinstance(part, dict) and set(part) == {"video"} and part["video"] in CAMERAS:
        return Video(camera=part["video"])
    raise RecipeError(
        f"{place}: expected a text or one of "
        f"{', '.join(f'{{ video = {_quote(camera)} }}' for camera in CAMERAS)}; got {part!r}."
    )


def parse_template(text: str, place: str) -> Template:
    """Return the template that a text with `{slot}` or `{slot:format}` describes.

    Raises:
        RecipeError: on a lone brace, an unknown slot or a conversion (`!r`).
    """
    parts: list[str | Slot] = []
    try:
        for literal, name, specification, conversion in Formatter().parse(text):
            parts.append(literal)
            if name is not None:
                parts.append(_slot(name, specification or "", conversion))
    except ValueError as error:
        raise RecipeError(
            f"{place}: expected text with the slots {', '.join(f'{{{slot}}}' for slot in SLOTS)}, "
            f"at most with a format as in {{velocity:.3f}}; got: {error}. "
            f"Double a brace that is meant literally."
        ) from None
    return join_template(parts)


def _slot(name: str, specification: str, conversion: str | None) -> Slot:
    if name not in SLOTS:
        raise ValueError(f"no such slot as {{{name}}}")
    if conversion or "{" in specification:
        raise ValueError(f"{{{name}}} with more than a format")
    return Slot.model_validate({"slot": name, "format": specification})


def _render_prompt(name: str, prompt: Prompt) -> str:
    parts = (
        f"{{ video = {_quote(part.camera)} }}"
        if isinstance(part, Video)
        else _quote(_render_template(part))
        for part in prompt.user
    )
    user = "".join(f"  {part},\n" for part in parts)
    system = _quote(_render_template((prompt.system,)))
    return f"[prompt.{name}]\nsystem = {system}\nuser = [\n{user}]\n"


def _render_template(template: Template) -> str:
    return "".join(
        _render_slot(part) if isinstance(part, Slot) else part.replace("{", "{{").replace("}", "}}")
        for part in template
    )


def _render_slot(slot: Slot) -> str:
    return f"{{{slot.slot}:{slot.format}}}" if slot.format else f"{{{slot.slot}}}"


_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")
"""What even a multi-line TOML string must escape, beside quote and backslash."""


def _escape(text: str) -> str:
    text = text.replace("\\", "\\\\").replace('"', '\\"')
    return _CONTROL.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def _quote(text: str) -> str:
    """Return a TOML string; one with newlines as a multi-line string with readable lines."""
    return f'"""\n{_escape(text)}"""' if "\n" in text else _quote_key(text)


def _quote_key(text: str) -> str:
    """Return a TOML string on one line."""
    return '"' + _escape(text).replace("\n", "\\n") + '"'
