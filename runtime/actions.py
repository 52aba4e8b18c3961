"""The action codebook: action indices to a trajectory and back."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from autovla_rt.errors import CodebookError, InputError
from autovla_rt.kernels import contour

POSE_SCALE = np.array([1.0, 1.0, contour.CORNER_RADIUS])
"""Metres that a unit of (x, y, heading) moves a corner of the box."""

_TENSOR = "corners"
_IMPORT_HINT = "Import the training repository's codebook again: autovla-rt codebook import."


@dataclass(frozen=True, eq=False)
class Codebook:
    """What each action token does to the car in one step of 0.5 s.

    Attributes:
        corners: float32 [num_actions, 4, 2], the contour after the step in the ego frame before it,
            metres, corners left-front, right-front, right-back, left-back. Read-only.
    """

    corners: NDArray[np.float32]

    def __post_init__(self) -> None:
        problem = _shape_problem(self.corners.dtype.name, self.corners.shape)
        if problem is None and not np.isfinite(self.corners).all():
            problem = "it holds NaN or infinity"
        if problem is not None:
            raise CodebookError(f"Unusable action codebook: {problem}.\n{_IMPORT_HINT}")
        # A private copy, so that nobody's write can change what an action means.
        corners = self.corners.copy()
        corners.setflags(write=False)
        object.__setattr__(self, "corners", corners)

    @classmethod
    def load(cls, path: Path, num_actions: int) -> Codebook:
        """Read a codebook from safetensors (tensor "corners").

        Args:
            path: The file, as `autovla-rt codebook` writes it.
            num_actions: Entries that the action vocabulary of the model has.

        Raises:
            CodebookError: The file is missing, truncated, of another tensor, type or length, or
                holds values that are not finite.
        """
        corners = _read(path)
        if len(corners) != num_actions:
            raise CodebookError(
                f"{path}: the model has {num_actions} action tokens, but this codebook has "
                f"{len(corners)} entries.\nUse the codebook that the checkpoint was trained with."
            )
        try:
            return cls(corners)
        except CodebookError as error:
            raise CodebookError(f"{path}: {error}") from None

    @property
    def num_actions(self) -> int:
        """Entries, one an action token."""
        return len(self.corners)

    @cached_property
    def poses(self) -> NDArray[np.float64]:
        """Pose [num_actions, 3] after each action, in the ego frame before it."""
        return contour.corners_to_pose(self.corners)

    @cached_property
    def _points(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Scaled poses [3, num_actions] and their squared lengths."""
        points = (self.poses * POSE_SCALE).T
        return points, (points**2).sum(axis=0)

    def nearest(self, poses: NDArray[np.float64]) -> NDArray[np.int64]:
        """Return the action [n] that leads nearest to each pose [n, 3] in one step.

        A radian of heading counts as the corner of the box that it moves.
        """
        points, squares = self._points
        # |p - q|² less |q|², which is the same for every action
        indices: NDArray[np.int64] = (squares - 2 * (poses * POSE_SCALE) @ points).argmin(axis=-1)
        return indices

    def apart(self, first: NDArray[np.int64], second: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return how far apart actions [n] and [n] lead in one step, metres (as `nearest`)."""
        points, _ = self._points
        distances: NDArray[np.float64] = np.linalg.norm(
            points[:, first] - points[:, second], axis=0
        )
        return distances

    def deviation(self, logits: NDArray[np.floating]) -> NDArray[np.float64]:
        """Return the standard deviation [n] of where an action leads, metres (as `nearest`).

        `logits` [n, num_actions] are of a distribution over actions for each of n steps.
        """
        points, squares = self._points
        weights = np.exp(logits - logits.max(axis=-1, keepdims=True), dtype=np.float64)
        weights /= weights.sum(axis=-1, keepdims=True)
        mean = weights @ points.T
        variance = weights @ squares - (mean**2).sum(axis=-1)
        deviations: NDArray[np.float64] = np.sqrt(np.maximum(variance, 0))
        return deviations

    def decode(self, indices: NDArray[np.int64]) -> NDArray[np.float64]:
        """Drive the actions one after another from the origin.

        Args:
            indices: Integers [n] in 0..num_actions-1 (token id - action_start_id).

        Returns:
            float64 [n, 3]: x, y, heading (-pi..pi) after each action, in the start's ego frame.

        Raises:
            CodebookError: An index is not an action.
        """
        indices = np.asarray(indices)
        if indices.ndim != 1 or not np.issubdtype(indices.dtype, np.integer):
            raise CodebookError(
                f"Expected action indices as integers [n], got {indices.dtype} "
                f"{list(indices.shape)}.\nPass token ids minus action_start_id."
            )
        outside = (indices < 0) | (indices >= self.num_actions)
        if outside.any():
            step = int(np.argmax(outside))
            raise CodebookError(
                f"Action index {indices[step]} at step {step} is outside "
                f"0..{self.num_actions - 1}.\n"
                "A token that is no action was decoded as one: subtract action_start_id from "
                "action tokens only, and check that model and codebook belong together."
            )
        return contour.roll_out(self.corners[indices])

    def encode(self, trajectory: NDArray[np.float64]) -> NDArray[np.int64]:
        """Find the actions that follow a trajectory (greedily, see `kernels.contour.follow`).

        Args:
            trajectory: [n, 3] x, y, heading in the ego frame of the start, 0.5 s apart; the start
                itself, (0, 0, 0), is not part of it.

        Returns:
            int64 [n] indices.

        Raises:
            InputError: The trajectory is of another shape or holds values that are not finite.
        """
        trajectory = np.asarray(trajectory, np.float64)
        if trajectory.ndim != 2 or trajectory.shape[1] != 3:
            raise InputError(
                f"Expected a trajectory [n, 3] of (x, y, heading), got {list(trajectory.shape)}."
            )
        unusable = ~np.isfinite(trajectory).all(axis=1)
        if unusable.any():
            step = int(np.argmax(unusable))
            raise InputError(
                f"Trajectory step {step} is {trajectory[step].tolist()}: expected finite numbers."
            )
        return contour.follow(self.corners, trajectory)


def _read(path: Path) -> NDArray[np.float32]:
    try:
        with safe_open(path, framework="numpy") as file:
            return _read_corners(file, path)
    except (OSError, SafetensorError) as error:
        raise CodebookError(
            f"{path}: cannot be read as a safetensors codebook ({error}).\n{_IMPORT_HINT}"
        ) from error


def _read_corners(file: Any, path: Path) -> NDArray[np.float32]:
    """Check name, type and shape before a value is read."""
    names = sorted(file.keys())
    if names != [_TENSOR]:
        raise CodebookError(
            f"{path}: expected the one tensor {_TENSOR!r}, got {', '.join(names) or 'none'}.\n"
            f"{_IMPORT_HINT}"
        )
    header = file.get_slice(_TENSOR)
    stored = header.get_dtype()
    problem = _shape_problem("float32" if stored == "F32" else stored, tuple(header.get_shape()))
    if problem is not None:
        raise CodebookError(f"{path}: {problem}.\n{_IMPORT_HINT}")
    corners: NDArray[np.float32] = file.get_tensor(_TENSOR)
    return corners


def _shape_problem(dtype: str, shape: tuple[int, ...]) -> str | None:
    """Say what keeps a tensor from being float32 [N, 4, 2] with N > 0, None if nothing does."""
    if dtype == "float32" and len(shape) == 3 and shape[0] > 0 and shape[1:] == (4, 2):
        return None
    return f"expected float32 [N, 4, 2], got {dtype} {list(shape)}"
