"""Options that several commands share."""

from __future__ import annotations

import enum
import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from autovla_rt.errors import DependencyError

if TYPE_CHECKING:
    from autovla_rt.runtime.draft import Refinement
    from autovla_rt.runtime.scene import Request

DEFAULT_ENGINE = Path("engines/demo")

EXTRAS = {
    "onnx": "export",
    "ml_dtypes": "export",
    "yaml": "export",
    "matplotlib": "plot",
    "numba": "demo",
    "openvino": "openvino",
    "ray": "dist",
}
"""Library -> extra of the package that installs it."""


EXACT = "exact"
AUTO_CERTAINTY = 1.0
"""Standard deviations, see `Refinement.certainty`."""
Decode = Annotated[
    str,
    typer.Option(
        help="exact, or refine:K[:CM|:auto], lossy: at most K passes over a draft, fewer once one "
        "moves no pose by more than CM centimetres (auto: no step by more than the model's own "
        "uncertainty)."
    ),
]


Frames = Annotated[Path | None, typer.Option(help="Folder with front, front_left and front_right.")]
SceneFile = Annotated[Path | None, typer.Option(help="Scene JSON of the training data.")]
SensorRoot = Annotated[Path | None, typer.Option(help="Root of the scene's paths.")]
Speed = Annotated[float | None, typer.Option(help="Speed in m/s; else scene.json.")]
Acceleration = Annotated[
    float | None, typer.Option(help="Norm of the acceleration in m/s²; else scene.json.")
]
Instruction = Annotated[str | None, typer.Option(help="Navigation instruction; else scene.json.")]


class Mode(enum.StrEnum):
    """Who decides between the fast and the slow answer."""

    auto = "auto"
    fast = "fast"
    slow = "slow"


def read_decode(text: str) -> Refinement | None:
    """Read --decode; None is exact.

    Raises:
        BadParameter: it is neither exact nor refine:K, refine:K:CM or refine:K:auto.
    """
    from autovla_rt.errors import InputError
    from autovla_rt.runtime.draft import Refinement

    if text == EXACT:
        return None
    kind, _, numbers = text.partition(":")
    passes, _, enough = numbers.partition(":")
    try:
        if kind == "refine":
            if enough == "auto":
                return Refinement(int(passes), certainty=AUTO_CERTAINTY)
            return Refinement(int(passes), float(enough or 0) / 100)
    except (ValueError, InputError):
        pass
    raise typer.BadParameter(
        "--decode: expected exact, refine:K, refine:K:CM or refine:K:auto with K passes from 1 and "
        f"CM centimetres from 0, such as refine:2, refine:10:20 or refine:4:auto, got {text!r}"
    )


def read_request(
    frames: Path | None,
    scene: Path | None,
    sensor_root: Path | None,
    speed: float | None,
    acceleration: float | None,
    instruction: str | None,
) -> Request:
    """Read the request of the options above.

    Raises:
        BadParameter: options that do not go together.
        InputError: what they name is unusable.
    """
    from autovla_rt.runtime.scene import read_frames_dir, read_scene

    if (frames is None) == (scene is None):
        given = "neither" if frames is None else "both"
        raise typer.BadParameter(f"expected --frames or --scene, got {given}: give one of them")
    if frames is not None:
        if sensor_root is not None:
            raise typer.BadParameter("--sensor-root goes with --scene: leave it out, or --frames")
        return read_frames_dir(
            frames, velocity=speed, acceleration=acceleration, instruction=instruction
        )
    assert scene is not None
    if sensor_root is None:
        raise typer.BadParameter("--scene needs --sensor-root: the folder its paths start from")
    if (speed, acceleration, instruction) != (None, None, None):
        raise typer.BadParameter(
            "--speed, --acceleration and --instruction go with --frames: a scene has its own"
        )
    return read_scene(scene, sensor_root)


def require_library(library: str, user: str) -> None:
    """Find out before any work that an optional library is missing."""
    if importlib.util.find_spec(library) is None:
        raise missing_library(library, user)


def missing_library(library: str, user: str) -> DependencyError:
    """Say which pip line installs a library."""
    return DependencyError(
        f"{user} needs {library}, which is not installed here.\n"
        f"Install it: pip install 'autovla-rt[{EXTRAS[library]}]'"
    )
