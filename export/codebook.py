"""The action codebook file: import the official one or build one, describe it, draw it."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from autovla_rt.errors import CodebookError, DependencyError
from autovla_rt.export import k_disk, recorded_driving
from autovla_rt.export.files.array_pickle import PickledArray, load_array_pickle
from autovla_rt.kernels import contour
from autovla_rt.output_file import write_file

FORMAT_VERSION = "1"

_TENSOR = "corners"
_LARGEST_PICKLE = 1 << 28  # the official one has 1.6 MB; a checkpoint given by mistake has 16 GB
_LARGEST_BOX_ERROR = 0.25  # metres; disk means are off by millimetres, a wrong corner order by 2 m
_FLOOR_TRAJECTORIES = 256


@dataclass(frozen=True)
class CodebookInfo:
    """What a codebook holds.

    Attributes:
        entries: Number of actions.
        dx: Smallest and largest step forward, metres.
        dy: Smallest and largest step to the left, metres.
        dtheta: Smallest and largest turn, radians, counter-clockwise.
        sha256: Of the tensor's bytes (float32, little-endian), whatever the file's metadata say.
        standstill_offset: Length of entry 0's displacement in metres: how far a standing car
            creeps in a step.
    """

    entries: int
    dx: tuple[float, float]
    dy: tuple[float, float]
    dtheta: tuple[float, float]
    sha256: str
    standstill_offset: float


@dataclass(frozen=True)
class CodebookBuild:
    """What `build_codebook` made, and how well it fits the scenes it was made from.

    Attributes:
        info: The codebook.
        scenes: Scenes that were read.
        segments: One-step segments that were clustered, with the standstill put first.
        coverage: Share of the segments that some disk took.
        reconstruction_floor: Mean distance in metres, over the poses of up to 256 of the
            trajectories, between a trajectory and its encoding: no plan can be closer.
    """

    info: CodebookInfo
    scenes: int
    segments: int
    coverage: float
    reconstruction_floor: float


def import_codebook(source: Path, destination: Path) -> CodebookInfo:
    """Convert the training repository's codebook pickle to safetensors, executing nothing.

    Args:
        source: Pickle with float32 `token_all.veh` [N, steps, 4, 2]; the last step is the action.
        destination: File to write; an existing one is replaced at once, complete.

    Raises:
        CodebookError: The pickle is unreadable, could run code, or holds something else.
        StorageError: The destination cannot be written.
    """
    corners, digest = _read_official(source)
    _write_codebook(destination, corners, {"source": source.name, "source_sha256": digest})
    return _info(corners)


def build_codebook(
    scene_jsons: Path | Sequence[Path],
    destination: Path,
    *,
    num_disks: int = 2048,
    tolerance: float = 0.05,
    seed: int = 0,
    max_segments: int = 200_000,
) -> CodebookBuild:
    """Cluster the driving of recorded scenes into a new codebook.

    The standstill becomes entry 0. The result depends on the arguments and the files alone.

    Args:
        scene_jsons: Official scene JSONs, or a folder that is searched for them.
        destination: File to write; an existing one is replaced at once, complete.
        num_disks: Entries wanted: the number of action tokens.
        tolerance: Radius of a disk, mean corner distance in metres.
        seed: Of the order in which scenes are read and disks drawn.
        max_segments: Stop reading scenes when there are this many segments.

    Raises:
        InputError: There is no scene, or one lacks a usable `gt_trajectory`.
        CodebookError: The segments do not fill `num_disks` disks.
        StorageError: The destination cannot be written.
    """
    trajectories = recorded_driving.read_trajectories(scene_jsons, seed, max_segments)
    steps = np.concatenate([np.zeros((1, 3)), *map(recorded_driving.relative_steps, trajectories)])
    segments = contour.pose_to_corners(steps[:max_segments])
    members = k_disk.disk_members(segments, num_disks, tolerance, seed)
    corners = k_disk.disk_means(segments, members)
    _write_codebook(
        destination,
        corners,
        {
            "source": f"k_disk of {len(trajectories)} scenes",
            "source_sha256": hashlib.sha256(segments.astype("<f8").tobytes()).hexdigest(),
            "tolerance": repr(tolerance),
            "seed": str(seed),
        },
    )
    return CodebookBuild(
        info=_info(corners),
        scenes=len(trajectories),
        segments=len(segments),
        coverage=sum(map(len, members)) / len(segments),
        reconstruction_floor=_reconstruction_floor(corners, trajectories[:_FLOOR_TRAJECTORIES]),
    )


def read_codebook(path: Path) -> NDArray[np.float32]:
    """Read the corners [N, 4, 2] of a codebook, from safetensors or the official pickle.

    Raises:
        CodebookError: The file is neither, or holds something else.
    """
    if path.suffix == ".safetensors":
        return _read_codebook(path)
    return _read_official(path)[0]


def write_codebook(corners: NDArray[np.float32], destination: Path) -> None:
    """Write the corners [N, 4, 2] of a codebook to safetensors, at once and complete.

    Raises:
        StorageError: The destination cannot be written.
    """
    _write_codebook(destination, corners, {})


def describe_codebook(path: Path) -> CodebookInfo:
    """Summarise a codebook in safetensors.

    Raises:
        CodebookError: The file is not such a codebook.
    """
    return _info(_read_codebook(path))


def draw_codebook(codebook_path: Path, png_path: Path) -> None:
    """Draw where each action puts the car, as an arrow along its heading, to a PNG.

    Raises:
        CodebookError: The codebook is unreadable.
        DependencyError: matplotlib is missing.
        StorageError: The picture cannot be written.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise DependencyError(
            f"Drawing needs matplotlib ({error}): pip install 'autovla-rt[plot]'"
        ) from error
    x, y, heading = contour.corners_to_pose(_read_codebook(codebook_path)).T
    # The object interface: pyplot would pick a screen and keep the figure alive.
    figure = Figure(figsize=(12, 6), layout="constrained")
    axes = figure.add_subplot()
    arrows = axes.quiver(
        x, y, np.cos(heading), np.sin(heading), heading, cmap="coolwarm", angles="xy", width=0.001
    )
    figure.colorbar(arrows, ax=axes, label="turn (rad, counter-clockwise)")
    axes.set(
        title=f"{codebook_path.name}: {len(x)} actions of 0.5 s",
        xlabel="forward (m)",
        ylabel="left (m)",
        aspect="equal",
        adjustable="datalim",
    )
    picture = io.BytesIO()
    FigureCanvasAgg(figure).print_png(picture)
    write_file(png_path, picture.getvalue())


def _read_official(source: Path) -> tuple[NDArray[np.float32], str]:
    """Return the corners of a pickle and the file's sha256."""
    data = _read_pickle(source)
    try:
        corners = _vehicle_corners(load_array_pickle(data))
        _require_boxes(corners)
    except CodebookError as error:
        raise CodebookError(f"{source}: {error}") from error
    return corners, hashlib.sha256(data).hexdigest()


def _read_pickle(source: Path) -> bytes:
    try:
        size = source.stat().st_size
        if size <= _LARGEST_PICKLE:
            return source.read_bytes()
    except OSError as error:
        raise CodebookError(
            f"{source}: cannot be read ({error.strerror}).\n"
            "Give the file that model.codebook_cache_path of the training config names."
        ) from error
    raise CodebookError(
        f"{source}: {size} bytes are too many for a codebook (the official one has 1.6 MB).\n"
        "Give the file that model.codebook_cache_path of the training config names."
    )


def _vehicle_corners(content: Any) -> NDArray[np.float32]:
    """Find `token_all.veh` [N, steps, 4, 2] and keep the last step."""
    for key in ("token_all", "veh"):
        if not isinstance(content, dict) or key not in content:
            found = sorted(map(str, content)) if isinstance(content, dict) else type(content)
            raise CodebookError(
                f"expected a dict with the key {key!r} (of token_all.veh), got {found}.\n"
                "Give the file that model.codebook_cache_path of the training config names."
            )
        content = content[key]
    if not isinstance(content, PickledArray):
        raise CodebookError(f"token_all.veh is {type(content).__name__}, expected an array.")
    contours = content.to_numpy()
    if contours.ndim != 4 or contours.shape[1] == 0:
        raise CodebookError(
            f"token_all.veh has shape {list(contours.shape)}, expected [N, steps, 4, 2]."
        )
    return _checked(contours[:, -1])


def _checked(corners: NDArray[Any]) -> NDArray[np.float32]:
    """Require finite float32 [N, 4, 2] with at least one entry."""
    if corners.dtype != np.float32 or corners.shape[1:] != (4, 2) or len(corners) == 0:
        raise CodebookError(
            f"expected contours in float32 [N, 4, 2], got {corners.dtype} {list(corners.shape)}."
        )
    if not np.isfinite(corners).all():
        entry = int(np.argmin(np.isfinite(corners).all(axis=(1, 2))))
        raise CodebookError(f"entry {entry} holds NaN or infinity.")
    return np.ascontiguousarray(corners)


def _require_boxes(corners: NDArray[np.float32]) -> None:
    """Refuse contours of another corner order or box: their actions would be other ones."""
    boxes = contour.pose_to_corners(contour.corners_to_pose(corners))
    error = contour.corner_distances(corners, boxes).mean(axis=-1)
    entry = int(np.argmax(error))
    if error[entry] > _LARGEST_BOX_ERROR:
        raise CodebookError(
            f"entry {entry} is {error[entry]:.2f} m (mean of its corners) off a "
            f"{contour.BOX_LENGTH} x {contour.BOX_WIDTH} m box with the corners left-front, "
            f"right-front, right-back, left-back.\nIts corners are {corners[entry].tolist()}."
        )


def _reconstruction_floor(
    corners: NDArray[np.float32], trajectories: Sequence[NDArray[np.float64]]
) -> float:
    """Encode and decode trajectories: mean distance of all their poses, metres."""
    errors = [
        contour.roll_out(corners[contour.follow(corners, trajectory)]) - trajectory
        for trajectory in trajectories
    ]
    return float(np.linalg.norm(np.concatenate(errors)[:, :2], axis=-1).mean())


def _info(corners: NDArray[np.float32]) -> CodebookInfo:
    poses = contour.corners_to_pose(corners)
    dx, dy, dtheta = [(float(axis.min()), float(axis.max())) for axis in poses.T]
    return CodebookInfo(
        entries=len(corners),
        dx=dx,
        dy=dy,
        dtheta=dtheta,
        sha256=hashlib.sha256(corners.astype("<f4").tobytes()).hexdigest(),
        standstill_offset=float(np.hypot(poses[0, 0], poses[0, 1])),
    )


def _read_codebook(path: Path) -> NDArray[np.float32]:
    try:
        with safe_open(path, framework="numpy") as file:
            return _checked(file.get_tensor(_TENSOR))
    # TypeError: a type that NumPy does not have, such as bfloat16.
    except (OSError, SafetensorError, TypeError, CodebookError) as error:
        raise CodebookError(f"{path}: not a safetensors codebook: {error}") from error


def _write_codebook(
    destination: Path, corners: NDArray[np.float32], metadata: Mapping[str, str]
) -> None:
    """Write safetensors: length of the header, header as JSON, data.

    Written here because the safetensors library puts metadata in an order that differs from call
    to call, and the same codebook should be the same file.
    """
    data = corners.astype("<f4").tobytes()
    header = json.dumps(
        {
            "__metadata__": {"format_version": FORMAT_VERSION, **metadata},
            _TENSOR: {"dtype": "F32", "shape": corners.shape, "data_offsets": [0, len(data)]},
        }
    ).encode()
    header += b" " * (-len(header) % 8)
    write_file(destination, len(header).to_bytes(8, "little") + header + data)
