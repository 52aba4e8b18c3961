"""The driving that scene JSONs recorded, as one-step motions."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from autovla_rt.errors import InputError
from autovla_rt.kernels import contour


def read_trajectories(
    scene_jsons: Path | Sequence[Path], seed: int, max_steps: int
) -> list[NDArray[np.float64]]:
    """Read the trajectories of scenes in random order until they have enough steps.

    Args:
        scene_jsons: Official scene JSONs, or a folder that is searched for them.
        seed: Of the order; a random one makes the scenes read a fair part of all.
        max_steps: Stop after the scene that reaches this many steps.

    Returns:
        float64 [n, 3] a scene: x, y, heading in the ego frame, 0.5 s apart, (0, 0, 0) before them.

    Raises:
        InputError: There is no scene, or one lacks a usable `gt_trajectory`.
    """
    files = _scene_files(scene_jsons)
    trajectories: list[NDArray[np.float64]] = []
    num_steps = 0
    for index in np.random.default_rng(seed).permutation(len(files)):
        trajectories.append(_read_trajectory(files[index]))
        num_steps += len(trajectories[-1])
        if num_steps >= max_steps:
            break
    return trajectories


def relative_steps(trajectory: NDArray[np.float64]) -> NDArray[np.float64]:
    """Express each pose [n, 3] in the frame of the one before; the first follows the origin."""
    before = np.concatenate([np.zeros((1, 3)), trajectory[:-1]])
    return contour.compose(contour.inverse(before), trajectory)


def _scene_files(scene_jsons: Path | Sequence[Path]) -> list[Path]:
    if not isinstance(scene_jsons, Path):
        files = list(scene_jsons)
    elif scene_jsons.is_dir():
        files = sorted(scene_jsons.rglob("*.json"))
    else:
        files = [scene_jsons]
    if not files:
        raise InputError(f"{scene_jsons}: found no scene JSON.")
    return files


def _read_trajectory(path: Path) -> NDArray[np.float64]:
    """Read `gt_trajectory` [n, 3] of a scene."""
    try:
        scene = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: not a readable scene JSON ({error}).") from error
    if not isinstance(scene, dict) or "gt_trajectory" not in scene:
        raise InputError(f"{path}: the scene has no key 'gt_trajectory'.")
    try:
        trajectory = np.asarray(scene["gt_trajectory"])
    except ValueError as error:
        raise InputError(f"{path}: gt_trajectory has rows of different lengths.") from error
    if trajectory.dtype.kind not in "if" or trajectory.ndim != 2 or trajectory.shape[1] != 3:
        raise InputError(
            f"{path}: gt_trajectory is {trajectory.dtype} {list(trajectory.shape)}, expected "
            "numbers [n, 3]: [[x, y, heading], ...] in metres and radians."
        )
    if not np.isfinite(trajectory).all():
        raise InputError(f"{path}: gt_trajectory holds NaN or infinity.")
    return trajectory.astype(np.float64)
