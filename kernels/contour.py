"""SE(2) poses, box contours, and the chain of actions that makes a trajectory.

A pose is (x, y, heading) in metres and radians, x forward, y left, heading counter-clockwise. A
contour is the four corners [4, 2] of a car-sized box around a pose, in the order left-front,
right-front, right-back, left-back. Everything is computed and returned in float64; leading axes
broadcast.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

BOX_LENGTH = 4.8
BOX_WIDTH = 2.0

CORNER_RADIUS = float(np.hypot(BOX_LENGTH, BOX_WIDTH)) / 2
"""Metres from a box's centre to its corners."""

_BOX = np.array([[1, 1], [1, -1], [-1, -1], [-1, 1]]) * (BOX_LENGTH / 2, BOX_WIDTH / 2)
_LEFT_FRONT, _LEFT_BACK = 0, 3


def transform(pose: ArrayLike, points: ArrayLike) -> NDArray[np.float64]:
    """Express points given in the frame of a pose in the frame that the pose is given in.

    Args:
        pose: [..., 3], metres and radians.
        points: [..., k, 2], metres, in the frame of `pose`.

    Returns:
        [..., k, 2], metres.
    """
    pose, points = np.asarray(pose, np.float64), np.asarray(points, np.float64)
    cos, sin = np.cos(pose[..., 2, None]), np.sin(pose[..., 2, None])
    x, y = points[..., 0], points[..., 1]
    return np.stack(
        [pose[..., 0, None] + cos * x - sin * y, pose[..., 1, None] + sin * x + cos * y], axis=-1
    )


def pose_to_corners(pose: ArrayLike) -> NDArray[np.float64]:
    """Draw the 4.8 x 2.0 m box around poses [..., 3]: corners [..., 4, 2] in metres."""
    return transform(pose, _BOX)


def corners_to_pose(corners: ArrayLike) -> NDArray[np.float64]:
    """Read poses [..., 3] off contours [..., 4, 2] in metres.

    The position is the mean of the corners, the heading (in -pi..pi) points from left-back to
    left-front. The corners need not form an exact box: disk means do not.
    """
    corners = np.asarray(corners, np.float64)
    side = corners[..., _LEFT_FRONT, :] - corners[..., _LEFT_BACK, :]
    heading = np.arctan2(side[..., 1], side[..., 0])
    return np.concatenate([corners.mean(axis=-2), heading[..., None]], axis=-1)


def compose(first: ArrayLike, second: ArrayLike) -> NDArray[np.float64]:
    """Move by `first`, then by `second` in the frame reached: poses [..., 3]."""
    first, second = np.asarray(first, np.float64), np.asarray(second, np.float64)
    position = transform(first, second[..., None, :2])[..., 0, :]
    heading = _wrap(first[..., 2] + second[..., 2])
    return np.concatenate([position, heading[..., None]], axis=-1)


def inverse(pose: ArrayLike) -> NDArray[np.float64]:
    """Undo poses [..., 3]: composing a pose with its inverse, on either side, gives zero."""
    pose = np.asarray(pose, np.float64)
    turn_back = np.concatenate([np.zeros_like(pose[..., :2]), -pose[..., 2:]], axis=-1)
    position = transform(turn_back, -pose[..., None, :2])[..., 0, :]
    return np.concatenate([position, _wrap(-pose[..., 2:])], axis=-1)


def corner_distances(first: ArrayLike, second: ArrayLike) -> NDArray[np.float64]:
    """Measure how far each corner of contours [..., 4, 2] is from its partner: [..., 4], metres."""
    difference = np.asarray(first, np.float64) - np.asarray(second, np.float64)
    distances: NDArray[np.float64] = np.sqrt(difference[..., 0] ** 2 + difference[..., 1] ** 2)
    return distances


def roll_out(steps: ArrayLike) -> NDArray[np.float64]:
    """Chain one-step contours into a trajectory that starts at the origin.

    Args:
        steps: [n, 4, 2] contours in metres, each in the ego frame before its step.

    Returns:
        [n, 3] poses after each step, in the frame of the start.
    """
    moved = corners_to_pose(steps)
    after = np.cumsum(moved[:, 2])
    before = after - moved[:, 2]
    cos, sin, (x, y) = np.cos(before), np.sin(before), moved[:, :2].T
    return np.stack(
        [np.cumsum(cos * x - sin * y), np.cumsum(sin * x + cos * y), _wrap(after)], axis=-1
    )


def follow(candidates: ArrayLike, trajectory: ArrayLike) -> NDArray[np.int64]:
    """Choose the one-step contours whose chain stays closest to a trajectory, greedily.

    Each step takes the candidate with the smallest sum of the four corner distances to the wanted
    box, seen from the state that the earlier choices reached (not from the wanted one, so errors do
    not add up); the first index wins a tie.

    Args:
        candidates: [N, 4, 2] contours in metres.
        trajectory: [n, 3] wanted poses, in the frame of the start at the origin.

    Returns:
        [n] indices into `candidates`.
    """
    candidates = np.asarray(candidates, np.float64)
    trajectory = np.asarray(trajectory, np.float64)
    chosen = np.empty(len(trajectory), np.int64)
    state = np.zeros(3)
    for index, wanted in enumerate(trajectory):
        target = pose_to_corners(compose(inverse(state), wanted))
        chosen[index] = np.argmin(corner_distances(candidates, target).sum(axis=-1))
        state = corners_to_pose(transform(state, candidates[chosen[index]]))
    return chosen


def _wrap(angle: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.arctan2(np.sin(angle), np.cos(angle))
