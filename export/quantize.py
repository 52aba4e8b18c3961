"""Round-to-nearest weight quantization, row by row, so that any slice of rows can be streamed."""

from __future__ import annotations

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

INT8_MAX = 127
INT8_ZERO_POINT = 128
INT4_ZERO_POINT = 8
INT4_MAX = 7

FP8_MAX = 448
"""The largest number of float8 e4m3."""

FP4_MAX = 6
"""The largest number of float4 e2m1."""

FP4_BLOCK = 16
"""Inputs that share a scale in nvfp4."""

FP8_LEAST = 2.0**-9
"""The smallest number of float8 e4m3 above zero."""

SMALLEST_SCALE = np.finfo(np.float32).tiny
"""Below it a scale has too few digits to divide by; such weights are as good as zero."""


def int8_per_channel(
    rows: NDArray[np.float32],
) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Quantize [N, K] output channels to symmetric int8.

    Returns:
        int8 [N, K] and its float32 scales [N]; weight = int8 * scale.
    """
    scale: NDArray[np.float32] = np.abs(rows).max(axis=1) / np.float32(INT8_MAX)
    scale[scale <= SMALLEST_SCALE] = 1
    quantized = np.rint(rows / scale[:, None])
    return quantized.astype(np.int8), scale


def int4_blockwise(
    rows: NDArray[np.float32], block: int
) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Quantize [N, K] to symmetric int4 with one scale per `block` consecutive inputs.

    The value of largest magnitude in a block is mapped to -8, the longer side of the int4 range.
    K is padded with zeros to a multiple of `block`.

    Returns:
        uint8 [N, K/block, block/2], the earlier value in the low nibble, stored with zero point 8,
        and float32 scales [N, K/block]; weight = (nibble - 8) * scale.
    """
    count, width = rows.shape
    blocks = -(-width // block)
    if blocks * block != width:
        rows = np.pad(rows, ((0, 0), (0, blocks * block - width)))
    grouped = rows.reshape(count, blocks, block)
    high, low = grouped.max(axis=2), grouped.min(axis=2)
    extreme = np.where(high > -low, high, low)
    scale: NDArray[np.float32] = extreme / np.float32(-INT4_ZERO_POINT)
    scale[np.abs(scale) <= SMALLEST_SCALE] = 0
    inverse = np.divide(np.float32(1), scale, out=np.zeros_like(scale), where=scale != 0)
    codes = grouped * inverse[:, :, None]
    codes += np.float32(INT4_ZERO_POINT + 0.5)
    nibbles = np.clip(codes, 0, 15).astype(np.uint8)
    packed = nibbles[:, :, 0::2] | (nibbles[:, :, 1::2] << 4)
    return packed.astype(np.uint8, copy=False), scale


def int8_blockwise(
    rows: NDArray[np.float32], block: int
) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Quantize [N, K] to symmetric int8 with one scale per `block` consecutive inputs.

    K is padded with zeros to a multiple of `block`.

    Returns:
        uint8 [N, K/block, block], stored with zero point 128, and float32 scales [N, K/block];
        weight = (code - 128) * scale.
    """
    count, width = rows.shape
    blocks = -(-width // block)
    grouped = np.pad(rows, ((0, 0), (0, blocks * block - width))).reshape(-1, block)
    codes, scale = int8_per_channel(grouped)
    unsigned = (codes.astype(np.int16) + INT8_ZERO_POINT).astype(np.uint8)
    return unsigned.reshape(count, blocks, block), scale.reshape(count, blocks)


def int4_symmetric(
    rows: NDArray[np.float32], block: int
) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Quantize [N, K] to int4 with one scale per `block` consecutive inputs, as ModelOpt does.

    The largest magnitude of a block is mapped to 7 or -7. K must be a multiple of `block`.

    Returns:
        int8 [N, K] of -7..7 and float32 scales [N, K/block]; weight = code * scale.
    """
    grouped = rows.reshape(len(rows), -1, block)
    scale: NDArray[np.float32] = np.abs(grouped).max(axis=2) / np.float32(INT4_MAX)
    scale[scale <= SMALLEST_SCALE] = 1
    codes = np.rint(grouped / scale[:, :, None]).astype(np.int8)
    return codes.reshape(rows.shape), scale


def fp8(rows: NDArray[np.float32], scale: np.float32) -> NDArray[np.generic]:
    """Quantize to float8 e4m3 with the scale of the whole tensor, largest magnitude / `FP8_MAX`.

    Returns:
        As many values; weight = value * scale.
    """
    # The quotient of the largest may round to more than 448, which this format has no number for.
    values: NDArray[np.generic] = np.clip(rows / scale, -FP8_MAX, FP8_MAX).astype(
        ml_dtypes.float8_e4m3fn
    )
    return values


def nvfp4_scale(largest: float) -> np.float32:
    """Return the scale of nvfp4's scales, of the largest magnitude of a whole tensor."""
    scale = np.float32(largest / (FP4_MAX * FP8_MAX))
    return scale if scale > SMALLEST_SCALE else np.float32(1)


def nvfp4(
    rows: NDArray[np.float32], tensor_scale: np.float32
) -> tuple[NDArray[np.uint8], NDArray[np.generic]]:
    """Quantize [N, K] to float4 e2m1 with float8 e4m3 scales of 16 consecutive inputs.

    K must be a multiple of 16. As NVIDIA ModelOpt has it: a block's largest magnitude is mapped to
    6, with ties to even.

    Args:
        rows: Some rows of the tensor.
        tensor_scale: `nvfp4_scale` of the whole of it.

    Returns:
        uint8 [N, K/2], the earlier value in the low nibble, and float8 scales [N, K/16]; weight =
        value * scale * tensor_scale.
    """
    blocks = rows.reshape(len(rows), -1, FP4_BLOCK)
    exact = np.abs(blocks).max(axis=2) / (np.float32(FP4_MAX) * tensor_scale)
    exact[exact == 0] = 1
    scales = np.clip(exact, FP8_LEAST, FP8_MAX).astype(ml_dtypes.float8_e4m3fn)
    unit = scales.astype(np.float32) * tensor_scale
    values = np.clip(blocks / unit[:, :, None], -FP4_MAX, FP4_MAX)
    codes = values.astype(ml_dtypes.float4_e2m1fn).view(np.uint8).reshape(rows.shape)
    return codes[:, 0::2] | codes[:, 1::2] << 4, scales
