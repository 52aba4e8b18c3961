"""What a plan is asked for: frames, motion and instruction, and the two layouts they come in."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np

from autovla_rt.config import CAMERAS, FRAMES_PER_CAMERA, INSTRUCTIONS_HINT
from autovla_rt.errors import InputError
from autovla_rt.runtime.frame_source import Frame

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp"})
SCENE_FILE = "scene.json"
EXPERT_KEY = "gt_trajectory"
REASONING_KEY = "cot_output"
POSE_LIMIT = 10_000
"""Metres and radians beyond which a pose is no pose of the next seconds."""

NUPLAN_PATH_KEYS = {
    "front": "front_camera_paths",
    "front_left": "left_camera_paths",
    "front_right": "right_camera_paths",
}
PATH_KEYS = {camera: f"{camera}_camera_paths" for camera in CAMERAS}
"""Camera -> key of its frame paths in scenes of every dataset but nuPlan."""

Trajectory = Sequence[Sequence[float]]
"""Poses [n][x, y, heading], metres and radians in the ego frame (x forward, y left)."""


@dataclass(frozen=True)
class Request:
    """One request for a plan.

    `frames` maps each camera of `CAMERAS` to its four frames, oldest first, 2 Hz. `velocity` is
    the speed in m/s, `acceleration` in m/s² as the checkpoint was trained (a norm in most
    datasets), `instruction` free text such as "turn left". `expert` is what was driven from here
    on, or None where nobody knows; planning ignores it.

    Raises:
        InputError: A camera is missing or unknown or has not four frames, a number is not finite,
            the speed is negative, the instruction is not a text, or the expert is no trajectory.
    """

    frames: Mapping[str, Sequence[Frame]]
    velocity: float
    acceleration: float
    instruction: str
    expert: Trajectory | None = None

    def __post_init__(self) -> None:
        if set(self.frames) != set(CAMERAS):
            raise InputError(
                f"expected frames of the cameras {', '.join(CAMERAS)}; "
                f"got {', '.join(self.frames) or 'none'}.\nGive exactly these three."
            )
        for camera, frames in self.frames.items():
            _check_count(frames, f"camera {camera}")
        _non_negative(_finite(self.velocity, "velocity"), "velocity")
        _finite(self.acceleration, "acceleration")
        _instruction(self.instruction, "instruction")
        if self.expert is not None:
            _poses(self.expert, "expert")


def read_frames_dir(
    folder: Path,
    *,
    velocity: float | None = None,
    acceleration: float | None = None,
    instruction: str | None = None,
) -> Request:
    """Read a request from `folder`/{front,front_left,front_right}, four image files each.

    File names give the order, oldest first; numbers in them count as numbers (2 before 10). Values
    that are not given here, and the expert's trajectory if it is there, are read from
    `folder`/scene.json.

    Raises:
        InputError: A camera's folder is missing or holds another number of images, or a value is
            given neither here nor in scene.json, or is unusable, or that file is.
    """
    frames = {camera: _frames_in(folder / camera) for camera in CAMERAS}
    given = {"velocity": velocity, "acceleration": acceleration, "instruction": instruction}
    missing = [key for key, value in given.items() if value is None]
    scene_file = folder / SCENE_FILE
    if missing and not scene_file.exists():
        raise InputError(
            f"{', '.join(missing)}: not given, and there is no {scene_file} to read from.\n"
            "Pass the missing values, or write that file."
        )
    scene = _read_json(scene_file) if scene_file.exists() else {}
    values = given | _read_values(scene, missing, scene_file)
    return Request(frames, **values, expert=_read_expert(scene, scene_file))


def read_scene(scene_json: Path, sensor_root: Path) -> Request:
    """Read a request from a scene of the training repository, its paths relative to `sensor_root`.

    Velocity and acceleration are numbers, or vectors whose first two components give the norm.

    Raises:
        InputError: The file is not a JSON object, a key is missing or of another type, a camera
            has not four paths, or a path does not exist.
    """
    scene = _read_json(scene_json)
    dataset = _get(scene, "dataset_name", scene_json)
    path_keys = NUPLAN_PATH_KEYS if dataset == "nuplan" else PATH_KEYS
    frames = {
        camera: _frames_at(_get(scene, key, scene_json), sensor_root, f"{scene_json}: {key}")
        for camera, key in path_keys.items()
    }
    values = _read_values(scene, VALUES, scene_json)
    return Request(frames, **values, expert=_read_expert(scene, scene_json))


def read_reasoning(scene_json: Path) -> str:
    """Read the chain of thought that a scene of the training repository teaches; "" without one.

    nuScenes scenes have several texts for one scene: the first that is not empty counts.

    Raises:
        InputError: the file is no scene, or what it has is neither a text nor a list of texts.
    """
    given = _read_json(scene_json).get(REASONING_KEY) or ""
    texts = given if isinstance(given, list) else [given]
    if not all(isinstance(text, str) for text in texts):
        raise InputError(
            f"{scene_json}: {REASONING_KEY}: expected a text or a list of texts, got "
            f"{_kind(given)}.\nGive the scene as AutoVLA's preprocessing wrote it."
        )
    return next((text.strip() for text in texts if text.strip()), "")


def _read_values(scene: dict[str, Any], keys: Iterable[str], source: Path) -> dict[str, Any]:
    return {key: VALUES[key](_get(scene, key, source), f"{source}: {key}") for key in keys}


def _read_expert(scene: dict[str, Any], source: Path) -> Trajectory | None:
    """Return the trajectory that was driven; None where the scene has none, or null."""
    value = scene.get(EXPERT_KEY)
    return None if value is None else _poses(value, f"{source}: {EXPERT_KEY}")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        scene = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(
            f"{path}: the scene cannot be read ({error}).\nExpected a UTF-8 JSON file."
        ) from error
    if not isinstance(scene, dict):
        raise InputError(
            f"{path}: expected one JSON object, got {_kind(scene)}.\n"
            "Give the file of one sample, not a list of samples."
        )
    return scene


def _get(scene: dict[str, Any], key: str, source: Path) -> Any:
    if key not in scene:
        raise InputError(
            f"{source}: the key {key} is missing; it has {', '.join(scene) or 'no keys'}.\n"
            "Add it, or give a scene file of AutoVLA's preprocessing."
        )
    return scene[key]


def _frames_in(folder: Path) -> tuple[Path, ...]:
    if not folder.is_dir():
        raise InputError(
            f"{folder}: the folder does not exist.\nExpected one folder for each camera "
            f"({', '.join(CAMERAS)}), each with {FRAMES_PER_CAMERA} images, oldest first by name."
        )
    images = [file for file in folder.iterdir() if file.suffix.lower() in IMAGE_SUFFIXES]
    _check_count(images, str(folder))
    return tuple(sorted(images, key=lambda file: _natural_order(file.name)))


def _natural_order(name: str) -> list[tuple[int, int, str]]:
    """Return a sort key that compares runs of digits as numbers."""
    parts = re.findall(r"([0-9]+)|([^0-9]+)", name)
    return [(1, 0, text) if text else (0, int(digits), digits) for digits, text in parts]


def _frames_at(paths: Any, sensor_root: Path, where: str) -> tuple[Path, ...]:
    if not isinstance(paths, list) or not all(isinstance(path, str) for path in paths):
        raise InputError(
            f"{where}: expected a list of {FRAMES_PER_CAMERA} paths, got {_kind(paths)}.\n"
            "Paths are texts relative to the sensor root."
        )
    _check_count(paths, where)
    files = tuple(sensor_root / path for path in paths)
    for file in files:
        if not file.is_file():
            raise InputError(
                f"{where}: there is no file {file}.\nPaths are relative to the sensor root "
                f"({sensor_root}): check that root, and that the frames were downloaded."
            )
    return files


def _check_count(frames: Sequence[object], where: str) -> None:
    if len(frames) != FRAMES_PER_CAMERA:
        raise InputError(
            f"{where}: expected {FRAMES_PER_CAMERA} frames, got {len(frames)}.\n"
            f"Give the last {FRAMES_PER_CAMERA} frames at 2 Hz, oldest first."
        )


def _speed(value: Any, where: str) -> float:
    return _non_negative(_norm(value, where), where)


def _norm(value: Any, where: str) -> float:
    """Return a number as it is, a vector as the length of its part in the ground plane."""
    if not isinstance(value, list):
        return _finite(value, where)
    if len(value) < 2:
        raise InputError(
            f"{where}: expected a number or a vector with x and y, got {value}.\n"
            "Give the norm itself, or both components."
        )
    x, y = (_finite(component, where) for component in value[:2])
    return math.hypot(x, y)


def _finite(value: Any, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, Real):
        raise InputError(
            f"{where}: expected a number, got {_kind(value)}.\nGive m/s (m/s² for acceleration)."
        )
    if not math.isfinite(value):
        raise InputError(
            f"{where}: expected a finite number, got {value}.\n"
            "Check the odometry of this moment; no value is assumed in its place."
        )
    return float(value)


def _non_negative(value: float, where: str) -> float:
    if value < 0:
        raise InputError(
            f"{where}: expected a speed of at least 0 m/s, got {value}.\n"
            "The model was trained on forward driving; it knows no reverse gear."
        )
    return value


def _poses(value: Any, where: str) -> Trajectory:
    """Return rows of x, y and heading as tuples of plain numbers."""
    rows = value.tolist() if isinstance(value, np.ndarray) else value
    if not isinstance(rows, Sequence) or isinstance(rows, str) or not rows:
        raise _no_pose(where, "a list of poses [x, y, heading]", rows)
    for index, row in enumerate(rows):
        if not _is_pose(row):
            raise _no_pose(f"{where}, pose {index}", "[x, y, heading], finite numbers", row)
    return tuple(tuple(map(float, row)) for row in rows)


def _is_pose(row: Any) -> bool:
    return (
        isinstance(row, Sequence)
        and len(row) == 3
        and all(isinstance(n, Real) and not isinstance(n, bool) for n in row)
        and all(abs(n) <= POSE_LIMIT for n in row)  # False for NaN
    )


def _no_pose(where: str, expected: str, got: Any) -> InputError:
    return InputError(
        f"{where}: expected {expected}, got {_kind(got)}.\n"
        f"Give metres and radians in the ego frame, each within {POSE_LIMIT}, or leave the "
        "trajectory out."
    )


def _instruction(value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise InputError(
            f"{where}: expected a text, got {_kind(value)}.\nGive {INSTRUCTIONS_HINT}."
        )
    if not value.strip():
        raise InputError(f"{where}: the instruction is empty.\nGive {INSTRUCTIONS_HINT}.")
    return value


def _kind(value: Any) -> str:
    """Return the type and a short form of a value for messages."""
    text = repr(value)
    return f"{type(value).__name__} {text if len(text) <= 60 else text[:57] + '...'}"


VALUES: Mapping[str, Callable[[Any, str], Any]] = {
    "velocity": _speed,
    "acceleration": _norm,
    "instruction": _instruction,
}
"""Key of a scene -> its reader, which takes the value and where it stands."""
