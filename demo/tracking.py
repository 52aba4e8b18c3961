"""The controller that follows a plan: a target speed and pure pursuit of the planned path."""

from __future__ import annotations

import numpy as np

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
        poses = np.concatenate([[origin], compose(origin, trajectory)])
        self.start = start
        self._poses = poses
        self._times = start + DT * np.arange(len(poses))
        steps = np.hypot(*np.diff(poses[:, :2], axis=0).T)
        self._along = np.concatenate([[0.0], np.cumsum(steps)])

    def control(self, ego: Array, time: float) -> tuple[float, float]:
        """Return (acceleration in m/s², curvature in 1/m) for an ego state at a time."""
        return self._acceleration(ego, time), self._curvature(ego)

    def _acceleration(self, ego: Array, time: float) -> float:
        """Approach the planned speed a little ahead, and catch up with the planned place."""
        ahead = self._place(time + SPEED_AHEAD + 0.25) - self._place(time + SPEED_AHEAD - 0.25)
        wanted = ahead / 0.5
        behind = self._place(time) - self._progress(ego)
        wanted = max(0.0, wanted + POSITION_GAIN * float(np.clip(behind, -3, 3)))
        return float((wanted - ego[SPEED]) / SPEED_AHEAD)

    def _curvature(self, ego: Array) -> float:
        reach = float(np.clip(REACH_TIME * ego[SPEED], SHORTEST_REACH, LONGEST_REACH))
        x, y = self._point(self._progress(ego) + reach)
        dx, dy = x - ego[X], y - ego[Y]
        left = -np.sin(ego[HEADING]) * dx + np.cos(ego[HEADING]) * dy
        distance = max(float(dx * dx + dy * dy), 1.0)
        return float(2.0 * left / distance * (1.0 - AXLE / (reach + AXLE)))

    def _place(self, time: float) -> float:
        """Return the planned distance from the origin at a time.

        Beyond its end the plan goes on at its last speed.
        """
        if time <= self._times[-1]:
            return float(np.interp(time, self._times, self._along))
        last_speed = (self._along[-1] - self._along[-2]) / DT
        return float(self._along[-1] + last_speed * (time - self._times[-1]))

    def _progress(self, ego: Array) -> float:
        """Return how far along the path the ego is: the foot of its nearest segment."""
        start, step = self._poses[:-1, :2], np.diff(self._poses[:, :2], axis=0)
        lengths = np.maximum(np.hypot(*step.T), 1e-6)
        offset = np.array([ego[X], ego[Y]]) - start
        feet = np.clip((offset * step).sum(axis=1) / lengths, 0, lengths)
        distance = np.hypot(*(offset - step * (feet / lengths)[:, None]).T)
        nearest = int(np.argmin(distance))
        return float(self._along[nearest] + feet[nearest])

    def _point(self, along: float) -> Array:
        """Return the path's point at a distance from its origin, straight on beyond its end."""
        if along <= self._along[-1]:
            x, y = (np.interp(along, self._along, self._poses[:, i]) for i in (0, 1))
            return np.array([x, y])
        pose = self._poses[-1]
        rest = along - self._along[-1]
        end: Array = pose[:2] + rest * np.array([np.cos(pose[2]), np.sin(pose[2])])
        return end
