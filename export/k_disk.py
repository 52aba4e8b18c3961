"""K-disk clustering: action segments to the entries of a codebook."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from autovla_rt.errors import CodebookError
from autovla_rt.kernels import contour


def k_disk(
    segments_corners: NDArray[np.floating], num_disks: int, tolerance: float, seed: int
) -> NDArray[np.float32]:
    """Cluster segments into disks of one radius and keep the mean of each.

    Sample 0 is drawn first, then one of the remaining samples at a time, uniformly; a draw takes
    all remaining samples within the tolerance of it. The result depends on the arguments alone.
    (K-disk clustering of motion tokens: Philion et al., Trajeglish, ICLR 2024.)

    Args:
        segments_corners: [M, 4, 2] one-step contours in metres, the standstill first.
        num_disks: Entries wanted.
        tolerance: Largest mean corner distance between a draw and its samples, metres.
        seed: Of the draws.

    Returns:
        float32 [num_disks, 4, 2], in the order drawn.

    Raises:
        CodebookError: The samples run out before `num_disks` disks are drawn.
    """
    members = disk_members(segments_corners, num_disks, tolerance, seed)
    return disk_means(segments_corners, members)


def disk_means(
    segments_corners: NDArray[np.floating], members: list[NDArray[np.int64]]
) -> NDArray[np.float32]:
    """Average the segments [M, 4, 2] of each disk: float32 [disks, 4, 2]."""
    means = [segments_corners[disk].mean(axis=0, dtype=np.float64) for disk in members]
    return np.stack(means).astype(np.float32)


def disk_members(
    segments_corners: NDArray[np.floating], num_disks: int, tolerance: float, seed: int
) -> list[NDArray[np.int64]]:
    """Draw disks (see `k_disk`) and list which samples each one took; no sample is in two.

    Raises:
        CodebookError: The samples run out before `num_disks` disks are drawn.
    """
    if num_disks < 1 or not tolerance > 0:
        raise CodebookError(
            f"Expected at least 1 disk of more than 0 m, got {num_disks} of {tolerance} m."
        )
    # A mean corner distance is never below the distance of the centres, let alone of their x. So
    # with the samples sorted by x, all that a draw can take lies in a narrow window: this is what
    # makes 2,048 draws from 200,000 samples a matter of a second.
    centre_x = segments_corners[..., 0].mean(axis=-1, dtype=np.float64)
    by_x = np.argsort(centre_x, kind="stable")
    corners, centre_x = segments_corners[by_x].astype(np.float64), centre_x[by_x]
    reach = tolerance + 1e-9  # rounding must not put the edge of a disk outside its window
    remaining = np.ones(len(corners), dtype=bool)
    members: list[NDArray[np.int64]] = []
    for drawn in np.argsort(by_x)[_draw_order(len(corners), seed)]:
        if len(members) == num_disks:
            break
        if not remaining[drawn]:
            continue
        low = np.searchsorted(centre_x, centre_x[drawn] - reach, side="left")
        high = np.searchsorted(centre_x, centre_x[drawn] + reach, side="right")
        window = low + np.flatnonzero(remaining[low:high])
        distance = contour.corner_distances(corners[window], corners[drawn]).mean(axis=-1)
        disk = window[distance <= tolerance]
        remaining[disk] = False
        members.append(np.sort(by_x[disk]))
    if len(members) < num_disks:
        raise CodebookError(
            f"The {len(corners)} segments ran out after {len(members)} disks of {tolerance} m; "
            f"{num_disks} were asked for.\nGive more scenes, a smaller tolerance or fewer disks."
        )
    return members


def _draw_order(num_samples: int, seed: int) -> NDArray[np.int64]:
    """Order the draws: sample 0, then the others at random.

    The first remaining sample of a random order is a uniform draw from the remaining ones.
    """
    others = 1 + np.random.default_rng(seed).permutation(max(num_samples - 1, 0))
    return np.concatenate([np.zeros(min(num_samples, 1), np.int64), others])
