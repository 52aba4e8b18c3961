"""Messages as the checkout builds them, turned into prompts and answers."""

from __future__ import annotations

import ast
from collections.abc import Callable, Collection, Iterator

from autovla_rt.config import CAMERAS, FRAMES_PER_CAMERA, Prompt, Slot, Template, Video
from autovla_rt.export.recipes.check import check_prompt, join_template, slots_of
from autovla_rt.export.recipes.source import SourceFile
from autovla_rt.export.recipes.values import (
    SLOT_SOURCES,
    Frame,
    RawInstruction,
    Structure,
    Text,
    Unknown,
    Value,
)

VIDEO_SETTINGS = ("min_pixels", "max_pixels")
"""Keys of a video that the checkpoint's config decides, not the prompt."""


def node_of(value: Value) -> ast.AST:
    """Return the expression that a value comes from.

    Raises:
        RecipeError: if the value is not understood.
    """
    if isinstance(value, Unknown):
        raise value.error
    return value.node


class MessageReader:
    """Turns the evaluated messages of one file into prompts and answers."""

    def __init__(self, source: SourceFile) -> None:
        self._source = source

    def prompt(self, messages: Value) -> Prompt:
        """Return the prompt of a conversation of system and user."""
        system, user = self._contents(messages, ("system", "user"))
        text = self._single_text(system)
        parts = self._structure(user, "list", "a list of texts and videos")
        cameras = iter(CAMERAS)
        prompt = Prompt(
            system=self._literal(text),
            user=tuple(self._part(part, cameras) for part in parts.values.values()),
        )
        check_prompt(prompt, self._source.place(parts.node) + "This prompt")
        return prompt

    def answer(self, messages: Value) -> Template:
        """Return the assistant text of a conversation of system, user and assistant."""
        return self.located_answer(messages)[0]

    def located_answer(self, messages: Value) -> tuple[Template, Text]:
        """Return the assistant text with its place."""
        *_, assistant = self._contents(messages, ("system", "user", "assistant"))
        text = self._single_text(assistant)
        return self._template(text), text

    def _contents(self, messages: Value, roles: Collection[str]) -> list[Value]:
        """Return the contents of the messages, whose roles must be exactly `roles`."""
        expected = f"a list of messages with the roles {', '.join(roles)} in this order"
        conversation = self._structure(messages, "list", expected)
        entries = [
            self._fields(message, ("role", "content")) for message in conversation.values.values()
        ]
        found = [self._literal(self._text(entry["role"])) for entry in entries]
        if found != list(roles):
            raise self._source.refuse(conversation.node, expected)
        return [entry["content"] for entry in entries]

    def _part(self, value: Value, cameras: Iterator[str]) -> Template | Video:
        kind = self._literal(self._text(self._fields(value, ("type",), None)["type"]))
        readers: dict[str, Callable[[Value], Template | Video]] = {
            "text": self._text_part,
            "video": lambda part: self._video(part, next(cameras, None)),
        }
        if kind not in readers:
            raise self._source.refuse(node_of(value), "a part of the type text or video")
        return readers[kind](value)

    def _text_part(self, value: Value) -> Template:
        return self._template(self._text(self._fields(value, ("type", "text"))["text"]))

    def _video(self, value: Value, expected: str | None) -> Video:
        fields = self._fields(value, ("type", "video"), VIDEO_SETTINGS)
        video = self._structure(fields["video"], "list", f"a list of {FRAMES_PER_CAMERA} frames")
        frames = [self._frame(frame) for frame in video.values.values()]
        camera = frames[0].camera if frames else ""
        if frames != [Frame(camera, number + 1) for number in range(FRAMES_PER_CAMERA)]:
            raise self._source.refuse(
                video.node,
                f"{FRAMES_PER_CAMERA} frames of one camera, oldest first: "
                f"CAMERA_1 to CAMERA_{FRAMES_PER_CAMERA}",
            )
        if camera != expected:
            raise self._source.refuse(
                video.node,
                f"the videos {', '.join(CAMERAS)} in this order: here "
                f"{expected or 'no further video'}, got {camera}",
            )
        return Video(camera=camera)

    def _frame(self, value: Value) -> Frame:
        text = self._text(value)
        match text.parts:
            case (Frame() as frame,) | ("file://", Frame() as frame):
                return frame
        raise self._source.refuse(text.node, 'a frame\'s path, such as f"file://{front_camera_1}"')

    def _single_text(self, value: Value) -> Text:
        """Return a content that is a text or a list of one text part."""
        if isinstance(value, Text):
            return value
        expected = "one text, or a list of one text part"
        parts = list(self._structure(value, "list", expected).values.values())
        if len(parts) != 1:
            raise self._source.refuse(node_of(value), expected)
        fields = self._fields(parts[0], ("type", "text"))
        if self._literal(self._text(fields["type"])) != "text":
            raise self._source.refuse(node_of(parts[0]), expected)
        return self._text(fields["text"])

    def _template(self, text: Text) -> Template:
        parts: list[str | Slot] = []
        for part in text.parts:
            if isinstance(part, RawInstruction):
                raise self._source.refuse(text.node, SLOT_SOURCES["instruction"])
            if isinstance(part, Frame):
                raise self._source.refuse(text.node, "text without a camera frame")
            parts.append(part)
        return join_template(parts)

    def _literal(self, text: Text) -> str:
        if slots_of(template := self._template(text)):
            raise self._source.refuse(text.node, "text without variables")
        return "".join(part for part in template if isinstance(part, str))

    def _text(self, value: Value) -> Text:
        if isinstance(value, Text):
            return value
        raise self._source.refuse(node_of(value), "text, got a list or dict")

    def _structure(self, value: Value, kind: str, expected: str) -> Structure:
        if not isinstance(value, Structure) or value.kind != kind:
            raise self._source.refuse(node_of(value), expected)
        if value.spoiled:
            raise value.spoiled
        return value

    def _fields(
        self, value: Value, required: Collection[str], optional: Collection[str] | None = ()
    ) -> dict[str, Value]:
        """Return the entries of a dict with the required keys; `optional` None allows any more."""
        expected = f"a dict with the keys {', '.join((*required, *(optional or ())))}"
        structure = self._structure(value, "dict", expected)
        keys = set(structure.values)
        surplus = set() if optional is None else keys - {*required, *optional}
        if surplus or not keys >= set(required):
            raise self._source.refuse(structure.node, expected)
        return structure.values
