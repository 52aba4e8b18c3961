"""static_windows (exact): the vision tower's window partition as constants.

Qwen2.5-VL attends inside windows of `window_size` pixels in most vision blocks and over the whole
temporal patch in a few. For a fixed grid the partition, its inverse and the 2-D rotary positions
are known at build time. Windows of equal size are made neighbours, so each size is one dense
batched attention. Saves the Python loops over windows, the masks and all index arithmetic.

Source: Qwen2.5-VL technical report (arXiv 2502.13923), section 2.1.1; transformers
`Qwen2_5_VisionTransformerPretrainedModel.get_window_index`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from autovla_rt.config import VisionGeometry

ROTARY_THETA = 10000.0


@dataclass(frozen=True)
class WindowLayout:
    """Order of patches inside the tower, and where windows lie in it.

    Attributes:
        patch_order: [N] processor-order index of each patch in tower order.
        token_restore: [N/merge²] tower-order index of each merged token in processor order.
        groups: (number of windows, patches in each), consecutive in tower order.
        cos: [N, head_dim/2] rotary table in tower order; `sin` likewise.
    """

    patch_order: NDArray[np.int64]
    token_restore: NDArray[np.int64]
    groups: tuple[tuple[int, int], ...]
    cos: NDArray[np.float32]
    sin: NDArray[np.float32]


def static_windows(geometry: VisionGeometry, rows: int, columns: int) -> WindowLayout:
    """Lay out one temporal patch of `rows` x `columns` patches.

    Raises:
        ValueError: the grid is not a multiple of the spatial merge size.
    """
    merge = geometry.spatial_merge_size
    if rows % merge or columns % merge:
        raise ValueError(f"grid {rows}x{columns} is not a multiple of the merge size {merge}")
    side = geometry.window_size // merge // geometry.patch_size
    tokens = np.arange(rows * columns // merge**2).reshape(rows // merge, columns // merge)
    by_size: dict[int, list[NDArray[np.int64]]] = {}
    for top in range(0, tokens.shape[0], side):
        for left in range(0, tokens.shape[1], side):
            window = tokens[top : top + side, left : left + side].reshape(-1)
            by_size.setdefault(window.size, []).append(window)
    token_order = np.concatenate([window for same in by_size.values() for window in same])
    cos, sin = _rotary_tables(geometry, rows, columns)
    patch_order = (token_order[:, None] * merge**2 + np.arange(merge**2)).reshape(-1)
    return WindowLayout(
        patch_order=patch_order,
        token_restore=np.argsort(token_order),
        groups=tuple((len(same), size * merge**2) for size, same in by_size.items()),
        cos=cos[patch_order],
        sin=sin[patch_order],
    )


def _rotary_tables(
    geometry: VisionGeometry, rows: int, columns: int
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Rotary tables [N, head_dim/2] in processor order: row angles, then column angles."""
    merge = geometry.spatial_merge_size
    row, column = np.meshgrid(np.arange(rows), np.arange(columns), indexing="ij")
    blocked = (rows // merge, merge, columns // merge, merge)
    positions = np.stack(
        [index.reshape(blocked).transpose(0, 2, 1, 3).reshape(-1) for index in (row, column)], 1
    ).astype(np.float32)
    half = geometry.head_dim // 2
    exponent = np.arange(0, half, 2, dtype=np.float32) / np.float32(half)
    frequencies = (1.0 / np.float32(ROTARY_THETA) ** exponent).astype(np.float32)
    angles = (positions[:, :, None] * frequencies).reshape(rows * columns, half)
    return np.cos(angles), np.sin(angles)
