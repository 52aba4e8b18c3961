"""The controller that follows a plan: a target speed and pure pursuit of the planned path."""

from __future__ import annotations

import numpy as np

from autovla_rt.demo.jit import kernel
from autovla_rt.demo.road import Array
from autovla_rt.demo.state import AXLE, HEADING, SPEED, X, Y
from autovla_rt.kernels.contour import compose

DT = 0.5
"""Time between two poses of a plan, s."""
SPEED_AHEAD, POSITION_GAIN = 0.4, 0.3
"""The speed planned for so many seconds ahead is reached in that time, braking as planned."""
SHORTEST_REACH, LONGEST_REACH, REACH_TIME = 3.0, 11.0, 0.8


class PlannedPath:
    """A plan laid out in the world: where to be at which time.

    Args:
        origin: Pose (x, y, heading) of the ego when the plan's frames were taken.
        trajectory: [n, 3] poses in that ego frame, `DT` s apart.
        start: Time of the frames, s.
    """

    def __init__(self, origin: Array, trajectory: Array, start: float) -> None:
        self.start = start
        self._poses = np.concatenate([[origin], compose(origin, trajectory)])
        steps = np.hypot(*np.diff(self._poses[:, :2], axis=0).T)
        self._along = np.concatenate([[0.0], np.cumsum(steps)])

    def control(self, ego: Array, time: float) -> tuple[float, float]:
        """Return (acceleration in m/s², curvature in 1/m) for an ego state at a time."""
        return control(self._poses, self._along, time - self.start, ego)


@kernel
def control(poses: Array, along: Array, elapsed: float, ego: Array) -> tuple[float, float]:
    """Follow poses [n, 3] that lie `along` [n] metres behind the first, `elapsed` s after it."""
    progress = _progress(poses, along, ego)
    ahead = _place(along, elapsed + SPEED_AHEAD + 0.25) - _place(
        along, elapsed + SPEED_AHEAD - 0.25
    )
    behind = min(max(_place(along, elapsed) - progress, -3.0), 3.0)
    wanted = max(0.0, ahead / 0.5 + POSITION_GAIN * behind)
    acceleration = (wanted - ego[SPEED]) / SPEED_AHEAD
    reach = min(max(REACH_TIME * ego[SPEED], SHORTEST_REACH), LONGEST_REACH)
    x, y = _point(poses, along, progress + reach)
    dx, dy = x - ego[X], y - ego[Y]
    left = -np.sin(ego[HEADING]) * dx + np.cos(ego[HEADING]) * dy
    distance = max(dx * dx + dy * dy, 1.0)
    return acceleration, 2.0 * left / distance * (1.0 - AXLE / (reach + AXLE))


@kernel
def _place(along: Array, elapsed: float) -> float:
    """Return the planned distance from the origin; beyond its end the last speed goes on."""
    last = len(along) - 1
    step = min(max(int(elapsed / DT), 0), last - 1)
    return float(along[step] + (along[step + 1] - along[step]) * (elapsed / DT - step))


@kernel
def _progress(poses: Array, along: Array, ego: Array) -> float:
    """Return how far along the path the ego is: the foot of its nearest segment."""
    nearest, progress = np.inf, 0.0
    for i in range(len(poses) - 1):
        length = max(along[i + 1] - along[i], 1e-6)
        ux, uy = (poses[i + 1, 0] - poses[i, 0]) / length, (poses[i + 1, 1] - poses[i, 1]) / length
        dx, dy = ego[X] - poses[i, 0], ego[Y] - poses[i, 1]
        foot = min(max(dx * ux + dy * uy, 0.0), length)
        distance = np.hypot(dx - foot * ux, dy - foot * uy)
        if distance < nearest:
            nearest, progress = distance, along[i] + foot
    return progress


@kernel
def _point(poses: Array, along: Array, place: float) -> tuple[float, float]:
    """Return the path's point at a distance from its origin, straight on beyond its end."""
    last = len(along) - 1
    if place >= along[last]:
        rest, heading = place - along[last], poses[last, 2]
        return poses[last, 0] + rest * np.cos(heading), poses[last, 1] + rest * np.sin(heading)
    i = min(max(int(np.searchsorted(along, place, side="right")) - 1, 0), last - 1)
    share = (place - along[i]) / max(along[i + 1] - along[i], 1e-9)
    x = poses[i, 0] + share * (poses[i + 1, 0] - poses[i, 0])
    y = poses[i, 1] + share * (poses[i + 1, 1] - poses[i, 1])
    return x, y
