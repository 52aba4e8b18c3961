"""What the names and expressions of a checkout stand for: slots, camera frames, texts, lists."""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from autovla_rt.config import Slot
from autovla_rt.errors import RecipeError

SlotName = Literal["velocity", "acceleration", "instruction", "reasoning", "actions"]

SLOT_OF_NAME: Mapping[str, SlotName] = {
    "velocity": "velocity",
    "speed": "velocity",
    "vel": "velocity",
    "acceleration": "acceleration",
    "accel": "acceleration",
    "acc": "acceleration",
    "instruction": "instruction",
    "driving_instruction": "instruction",
    "driving_command": "instruction",
    "gt_cot": "reasoning",
    "cot": "reasoning",
    "cot_output": "reasoning",
    "cot_text": "reasoning",
    "reasoning": "reasoning",
    "action_text": "actions",
    "action_str": "actions",
    "action_tokens": "actions",
    "trajectory_text": "actions",
    "trajectory_tokens": "actions",
}
"""The variable names that stand for a slot: the one place to teach the reader a new one."""

CAMERA_OF_NAME: Mapping[str, str] = {
    "front_camera": "front",
    "front_left_camera": "front_left",
    "left_camera": "front_left",
    "front_right_camera": "front_right",
    "right_camera": "front_right",
}
"""Variable names of cameras; a frame is one of these with `_1` to `_4` behind it."""

ACTION_RENDERERS = ("action_tokenizer",)
"""Callables that turn action indices into the text of the action tokens."""

VECTOR_NORMS = ("sqrt", "hypot", "norm", "float")
"""Functions whose result may be named velocity or acceleration; other arithmetic changes units."""

SLOT_SOURCES: Mapping[SlotName, str] = {
    "velocity": "the velocity as it is read, or its norm (m/s; other arithmetic changes the unit)",
    "acceleration": "the acceleration as it is read, or its norm (m/s²)",
    "instruction": "the instruction as it is read, with .lower(), as the runtime writes it",
    "reasoning": "the reasoning as it is read, at most stripped",
    "actions": f'the action tokens from {" or ".join(ACTION_RENDERERS)}, or "".join',
}
"""How a variable may be assigned to stand for its slot, for refusals."""


@dataclass(frozen=True)
class Frame:
    """One frame of a camera in a video list, 1 the oldest."""

    camera: str
    number: int


@dataclass(frozen=True)
class RawInstruction:
    """The instruction before it is lower-cased, which the runtime always does."""


Part = str | Slot | Frame | RawInstruction


@dataclass(frozen=True)
class Text:
    """A string that is understood: literal text and what fills it."""

    parts: tuple[Part, ...]
    node: ast.AST = field(compare=False)


@dataclass
class Structure:
    """A list or tuple (keys "0", "1", ...) or a dict with constant text keys."""

    kind: Literal["list", "dict"]
    values: dict[str, Value]
    node: ast.AST = field(compare=False)
    spoiled: RecipeError | None = None


@dataclass(frozen=True)
class Unknown:
    """A value that is not understood, with the refusal to raise where it is needed."""

    error: RecipeError = field(compare=False)


Value = Text | Structure | Unknown
Names = Mapping[str, Value]


def frame_of_name(name: str) -> Frame | None:
    """Return the camera frame that a variable name stands for, None for other names."""
    match = re.fullmatch(r"(\w+)_(\d)", name)
    camera = match and CAMERA_OF_NAME.get(match[1])
    return Frame(camera, int(match[2])) if match and camera else None
