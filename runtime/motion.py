"""Guesses of where the ego will be: its motion carried on, or its last plan seen from now."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from autovla_rt.kernels.contour import compose, inverse

Poses = NDArray[np.float64]


def constant_motion(
    speed: float, acceleration: float, yaw_rate: float, *, steps: int, dt: float
) -> Poses:
    """Carry on constant turn rate and acceleration: poses [steps, 3] in the ego frame.

    A car that brakes stops, and stays where it is (Schubert et al. 2008, "CTRA"; here each step is
    an arc of the step's mean speed).

    Args:
        speed: m/s.
        acceleration: Along the heading, m/s².
        yaw_rate: rad/s, counter-clockwise.
        steps: Number of poses.
        dt: Seconds between them.
    """
    time = dt * np.arange(steps + 1)
    if acceleration < 0:
        time = np.minimum(time, speed / -acceleration)
    moved = np.diff(speed * time + acceleration / 2 * time**2)
    turned = yaw_rate * np.diff(time)
    poses = np.zeros((steps + 1, 3))
    for step in range(steps):
        poses[step + 1] = compose(poses[step], _arc(moved[step], turned[step]))
    return poses[1:]


def carried_on(trajectory: ArrayLike, dt: float, elapsed: float) -> Poses:
    """Return an earlier plan as it looks now: as many poses [n, 3], in the present ego frame.

    The ego is taken to be on the plan. The plan's last step goes on where it ends. Between two
    poses positions and headings are interpolated.

    Args:
        trajectory: [n, 3] the plan, `dt` s apart, in the ego frame of its time.
        dt: Seconds between poses.
        elapsed: Seconds since then, from 0 on.
    """
    poses = np.concatenate([np.zeros((1, 3)), np.asarray(trajectory, np.float64)])
    count = len(poses) - 1
    last = compose(inverse(poses[-2]), poses[-1])
    for _ in range(math.ceil(elapsed / dt)):
        poses = np.concatenate([poses, compose(poses[-1], last)[None]])
    wanted = _interpolated(poses, elapsed / dt + np.arange(count + 1.0))
    return compose(inverse(wanted[0]), wanted[1:])


def steps_of(trajectory: ArrayLike) -> Poses:
    """Return the steps [n, 3] of a trajectory [n, 3]: each pose as seen from the one before."""
    poses = np.concatenate([np.zeros((1, 3)), np.asarray(trajectory, np.float64)])
    return compose(inverse(poses[:-1]), poses[1:])


def _interpolated(poses: Poses, places: NDArray[np.floating]) -> Poses:
    """Return poses at fractional indices."""
    headings = np.unwrap(poses[:, 2])
    indices = np.arange(len(poses))
    columns = (poses[:, 0], poses[:, 1], headings)
    return np.stack([np.interp(places, indices, column) for column in columns], axis=1)


def _arc(length: float, turn: float) -> Poses:
    """Return the pose at the end of an arc from the origin."""
    half = turn / 2
    chord = length * np.sinc(half / np.pi)
    return np.array([chord * math.cos(half), chord * math.sin(half), turn])
