"""Scenes as files, in the layout of AutoVLA's preprocessing: one JSON a scene, JPEG frames."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from autovla_rt.config import CAMERAS
from autovla_rt.demo.camera import View
from autovla_rt.demo.drivers import FRAME_HEIGHT, FRAME_WIDTH
from autovla_rt.demo.narrator import narrate
from autovla_rt.demo.render import render_moments
from autovla_rt.demo.scenes import Scene, record_scene
from autovla_rt.demo.state import SPEED
from autovla_rt.errors import InputError
from autovla_rt.output_file import make_folder, write_file
from autovla_rt.runtime.scene import PATH_KEYS, SCENE_FILE

JPEG_QUALITY = 80
SCENES, SENSORS = "scenes", "sensors"


def write_scenes(out: Path, seeds: Sequence[int], event: str | None = None) -> None:
    """Write a scene of every seed; what is there already is left as it is.

        out/scenes/TOKEN.json               paths relative to out/sensors
        out/sensors/TOKEN/CAMERA/0.jpg ...  oldest first

    A scene's JSON is written last, so a run that was killed leaves no scene without its frames and
    goes on where it stopped.

    Raises:
        InputError: a scene JSON that is there cannot be read.
        StorageError: `out` is a file, or the file system refused.
    """
    for seed in seeds:
        token = f"miniature-{seed:010d}" + ("" if event is None else f"-{event}")
        path = out / SCENES / f"{token}.json"
        if path.exists():
            _require_whole(path)
            continue
        scene = record_scene(seed, event)
        frames = _write_frames(out / SENSORS, token, scene)
        make_folder(path.parent)
        write_file(path, _json(describe(scene, token, frames)))


def write_frames_folder(out: Path, scene: Scene) -> None:
    """Write one scene as a frames folder (`plan --frames`): cameras' folders and scene.json.

    Raises:
        StorageError: the file system refused.
    """
    frames = _write_frames(out, "", scene)
    write_file(out / SCENE_FILE, _json(describe(scene, out.name, frames)))


def describe(scene: Scene, token: str, frames: dict[str, list[str]]) -> dict[str, Any]:
    """Return a scene's JSON; `frames` are its paths by camera, oldest first."""
    now = scene.now
    return {
        "token": token,
        "dataset_name": "miniature",
        "instruction": now.instruction,
        "velocity": round(float(now.ego[SPEED]), 6),
        "acceleration": round(now.acceleration, 6),
        "gt_trajectory": [[round(float(v), 5) for v in pose] for pose in scene.trajectory],
        **{PATH_KEYS[camera]: paths for camera, paths in frames.items()},
        "cot_output": narrate(scene) if scene.complex else "",
        "complex": scene.complex,
        "seed": scene.seed,
    }


def _write_frames(root: Path, token: str, scene: Scene) -> dict[str, list[str]]:
    drawn = render_moments(scene.moments, FRAME_WIDTH, FRAME_HEIGHT)
    paths: dict[str, list[str]] = {}
    for camera in CAMERAS:
        make_folder(root / token / camera)
        paths[camera] = [str(Path(token, camera, f"{i}.jpg")) for i in range(len(drawn))]
        for path, views in zip(paths[camera], drawn, strict=True):
            write_file(root / path, _jpeg(views[camera]))
    return paths


def _jpeg(view: View) -> bytes:
    file = io.BytesIO()
    Image.fromarray(view.pixels).save(file, "JPEG", quality=JPEG_QUALITY)
    return file.getvalue()


def _json(content: dict[str, Any]) -> bytes:
    return (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode()


def _require_whole(path: Path) -> None:
    """Refuse to go on beside a scene that cannot be read: it would be counted as written."""
    try:
        json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise InputError(
            f"{path}: the scene is there already, but cannot be read ({error}).\n"
            "Delete it and run the same command again: it will be drawn anew."
        ) from error
