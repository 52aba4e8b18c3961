"""What the resize kernel needs to know of one frame size: tiles, and coefficients as int8 digits.

Tensor cores multiply 8-bit integers. A coefficient of 22 fractional bits is written in three
signed digits of base 256, a level as itself less 128; sums of their products are exact in 32 bits,
so the result equals `resample` bit for bit.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from autovla_rt.config import Preprocessing, VisionGeometry
from autovla_rt.kernels.patchify import normalise
from autovla_rt.kernels.resample import HALF, Axis, bicubic_axis

DIGITS = 3
CHANNELS = 3
TILE_PIXELS = 10
"""Output pixels of a tile: their 30 channels fill a matrix operand's 32 rows."""

TILE_CHANNELS = 32
TILE_ROWS = 32
"""Output rows of a tile."""

BYTE_CHUNK = 64
"""Bytes of a frame's row that are multiplied at once."""

ROW_CHUNK = 64
"""Rows of a frame that are held resized in one direction."""

ALIGNMENT = 16
"""Bytes of the widest load; a row of a frame starts at a multiple."""


@dataclass(frozen=True)
class ResizePlan:
    """Tables of one frame size. Arrays go to the device as they are.

    Attributes:
        size: Of a frame (height, width) in pixels.
        resized: What it becomes, (height, width) in pixels.
        pitch: Bytes between a frame's rows, a multiple of `ALIGNMENT`.
        byte_starts: int32 [tiles], first byte of a row that a tile of columns reads.
        byte_digits: int8 [tiles, 3, TILE_CHANNELS, bytes], coefficients by output channel.
        byte_bias: int32 [tiles, TILE_CHANNELS], what the sums of digits lack.
        row_starts: int32 [tiles], first row that a tile of rows reads.
        row_digits: int8 [tiles, 3, TILE_ROWS, rows].
        row_bias: int32 [tiles, TILE_ROWS].
    """

    size: tuple[int, int]
    resized: tuple[int, int]
    pitch: int
    byte_starts: NDArray[np.int32]
    byte_digits: NDArray[np.int8]
    byte_bias: NDArray[np.int32]
    row_starts: NDArray[np.int32]
    row_digits: NDArray[np.int8]
    row_bias: NDArray[np.int32]

    def grid(self, frames: int) -> tuple[int, int, int]:
        """Return how many programs one launch over `frames` frames has."""
        return len(self.byte_starts), len(self.row_starts), frames

    @property
    def tables(self) -> dict[str, NDArray[np.int32] | NDArray[np.int8]]:
        """The kernel's arguments that are tables, by name."""
        return {
            "byte_starts": self.byte_starts,
            "byte_digits": self.byte_digits,
            "byte_bias": self.byte_bias,
            "row_starts": self.row_starts,
            "row_digits": self.row_digits,
            "row_bias": self.row_bias,
        }

    @property
    def sizes(self) -> dict[str, int]:
        """The kernel's arguments that are numbers, by name."""
        return {
            "height": self.size[0],
            "pitch": self.pitch,
            "byte_window": self.byte_digits.shape[-1],
            "row_window": self.row_digits.shape[-1],
            "out_height": self.resized[0],
            "out_width": self.resized[1],
        }

    def pitched(self, frames: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Return frames [F, H, W, 3] as the kernel reads them: [F, H, pitch] bytes."""
        flat = frames.reshape(*frames.shape[:2], -1)
        return np.pad(flat, ((0, 0), (0, 0), (0, self.pitch - flat.shape[2])))


def plan_resize(size: tuple[int, int], resized: tuple[int, int]) -> ResizePlan:
    """Return the tables for frames of `size` (height, width) that become `resized`."""
    rows, columns = (bicubic_axis(*sides) for sides in zip(size, resized, strict=True))
    pitch = -(-size[1] * CHANNELS // ALIGNMENT) * ALIGNMENT
    byte_starts, byte_taps = _tiles(
        _by_channel(columns), TILE_PIXELS * CHANNELS, BYTE_CHUNK, ALIGNMENT
    )
    # Channel by channel, so that what a tile writes lies together; two rows of 32 stay empty.
    byte_taps = byte_taps.reshape(len(byte_taps), TILE_PIXELS, CHANNELS, -1).swapaxes(1, 2)
    byte_taps = byte_taps.reshape(len(byte_taps), TILE_PIXELS * CHANNELS, -1)
    spare = TILE_CHANNELS - TILE_PIXELS * CHANNELS
    byte_taps = np.pad(byte_taps, ((0, 0), (0, spare), (0, 0)))
    row_starts, row_taps = _tiles(rows, TILE_ROWS, ROW_CHUNK)
    return ResizePlan(
        size,
        resized,
        pitch,
        byte_starts,
        to_digits(byte_taps),
        _bias(byte_taps),
        row_starts,
        to_digits(row_taps),
        _bias(row_taps),
    )


def level_values(preprocessing: Preprocessing, vision: VisionGeometry) -> NDArray[np.float32]:
    """Return what `normalise` makes of each level: [3, 256]."""
    repeat = vision.patch_width // CHANNELS
    levels = np.broadcast_to(np.arange(256, dtype=np.uint8)[:, None], (256, repeat * CHANNELS))
    return np.ascontiguousarray(normalise(levels, preprocessing)[:, ::repeat].T)


def to_digits(taps: NDArray[np.int32]) -> NDArray[np.int8]:
    """Write coefficients [tiles, n, k] in signed base-256 digits [tiles, 3, n, k], lowest first.

    Three hold what is below 1.99 in magnitude; a bicubic coefficient is hardly above 1.
    """
    digits, rest = [], taps.astype(np.int64)
    for _ in range(DIGITS):
        digit = ((rest + 128) & 255) - 128
        digits.append(digit.astype(np.int8))
        rest = (rest - digit) >> 8
    return np.stack(digits, axis=1)


def _by_channel(columns: Axis) -> Axis:
    """Return the axis of a row's bytes: pixels' channels, interleaved, in and out."""
    count, taps = columns.taps.shape
    spread = np.zeros((count, CHANNELS, taps, CHANNELS), np.int32)
    for channel in range(CHANNELS):
        spread[:, channel, :, channel] = columns.taps
    return Axis(
        columns.size * CHANNELS,
        np.repeat(columns.first * CHANNELS, CHANNELS),
        spread.reshape(count * CHANNELS, taps * CHANNELS),
    )


def _tiles(
    axis: Axis, outputs: int, chunk: int, align: int = 1
) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Cut an axis into tiles of `outputs`, each with one window of inputs for all of them.

    Returns:
        int32 [tiles] first inputs, multiples of `align`, and the coefficients
        [tiles, outputs, window], the window a multiple of `chunk`.
    """
    count, taps = axis.taps.shape
    tiles = -(-count // outputs)
    starts = axis.first[::outputs] // align * align
    tile, place = np.divmod(np.arange(count), outputs)
    offset = axis.first - starts[tile]
    window = -(-(int(offset.max()) + taps) // chunk) * chunk
    dense = np.zeros((tiles, outputs, window), np.int32)
    index = offset[:, None] + np.arange(taps)
    dense[tile[:, None], place[:, None], index] = axis.taps
    return starts, dense


def _bias(taps: NDArray[np.int32]) -> NDArray[np.int32]:
    """Return the rounding half, and what levels less 128 leave out of each sum."""
    bias: NDArray[np.int32] = (taps.sum(axis=-1, dtype=np.int64) * 128 + HALF).astype(np.int32)
    return bias
