"""Bicubic resizing of 8-bit frames as Pillow does it, the reference of the GPU kernel.

Two passes of fixed-point sums, columns first, with an 8-bit image between them. A filter that
shrinks is as much wider, so each output level is a sum over `taps` levels of its row or column.

Source: Pillow, `Image.resize(..., BICUBIC)`; the kernel is Keys' with a = -0.5 (Cubic Convolution
Interpolation for Digital Image Processing, 1981, equation 4).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

PRECISION_BITS = 22
"""Fractional bits of a coefficient: 32, less 8 of a level and 2 for sums of more than one."""

HALF = 1 << (PRECISION_BITS - 1)
SUPPORT = 2.0
"""Inputs on either side that the cubic reaches, when it does not shrink."""


@dataclass(frozen=True)
class Axis:
    """How one side is resized.

    Attributes:
        size: Inputs.
        first: int32 [out], index of the first input of each output.
        taps: int32 [out, most], fixed-point coefficients of the inputs from `first` on; 0 behind.
    """

    size: int
    first: NDArray[np.int32]
    taps: NDArray[np.int32]


def bicubic_axis(size: int, out: int) -> Axis:
    """Return how `size` pixels become `out`, bit for bit Pillow's coefficients.

    Pillow's are exact only where its compiler keeps multiplication and addition apart, as on
    x86-64; one that fuses them may round a coefficient to another neighbour.
    """
    scale = size / out
    stretch = max(scale, 1.0)
    support = SUPPORT * stretch
    centre = (np.arange(out) + 0.5) * scale
    first = np.maximum((centre - support + 0.5).astype(np.int64), 0)
    end = np.minimum((centre + support + 0.5).astype(np.int64), size)
    index = np.arange(math.ceil(support) * 2 + 1)
    distance = np.abs((index + first[:, None] - centre[:, None] + 0.5) * (1.0 / stretch))
    weights = np.where(index < (end - first)[:, None], _cubic(distance), 0.0)
    # In turn, as Pillow adds: NumPy's pairwise sum rounds differently.
    weights /= np.cumsum(weights, axis=1)[:, -1:]
    scaled = weights * (1 << PRECISION_BITS)
    taps = np.trunc(scaled + np.copysign(0.5, scaled)).astype(np.int32)
    used = int((end - first).max())
    return Axis(size, first.astype(np.int32), np.ascontiguousarray(taps[:, :used]))


def resample(frames: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    """Resize frames [F, H, W, C] to `size` (height, width) pixels: uint8 [F, height, width, C].

    Bit for bit what Pillow gives for each frame (see `bicubic_axis`), but where it takes
    `rows_first`.
    """
    rows, columns = (
        bicubic_axis(given, wanted) for given, wanted in zip(frames.shape[1:3], size, strict=True)
    )
    return _pass(_pass(frames, columns, 2), rows, 1)


def rows_first(size: tuple[int, int], resized: tuple[int, int]) -> bool:
    """Whether Pillow 13 takes the rows first, given a frame's (height, width) before and after.

    So it does where a frame loses rows, and more than twice as many as columns (seen in tries).
    """
    rows, columns = (before - after for before, after in zip(size, resized, strict=True))
    return rows > max(2 * columns, 0)


def to_levels(sums: NDArray[np.int32]) -> NDArray[np.uint8]:
    """Round fixed-point sums, to which `HALF` was added, to levels."""
    levels: NDArray[np.uint8] = np.clip(sums >> PRECISION_BITS, 0, 255).astype(np.uint8)
    return levels


def _cubic(distance: NDArray[np.float64]) -> NDArray[np.float64]:
    near = ((-0.5 + 2.0) * distance - (-0.5 + 3.0)) * distance * distance + 1
    far = (((distance - 5) * distance + 8) * distance - 4) * -0.5
    return np.where(distance < 1, near, np.where(distance < SUPPORT, far, 0.0))


def _pass(frames: NDArray[np.uint8], axis: Axis, number: int) -> NDArray[np.uint8]:
    """Resize one axis of frames."""
    levels = np.moveaxis(frames, number, -1)
    sums = np.full((*levels.shape[:-1], len(axis.first)), HALF, np.int32)
    for tap in range(axis.taps.shape[1]):
        at = np.minimum(axis.first + tap, axis.size - 1)
        sums += levels[..., at] * axis.taps[:, tap]
    return np.moveaxis(to_levels(sums), -1, number)
