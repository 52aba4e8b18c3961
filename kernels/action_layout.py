"""How the action head's kernel lays out weights, mask and scratch memory, with NumPy to check it.

Weights [N, H] of N actions, H inputs:
- fp16: as they are.
- int8: codes int8 [N, H] and a float32 scale for each row; weight = code * scale.
- int4: codes of -8..7 in nibbles, and a float32 scale for each `block` inputs of a row. Byte j of a
  block holds input j in its low and input j + block / 2 in its high nibble, each with 8 added, so
  that either half of a block is multiplied without putting neighbours together first.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from autovla_rt.errors import InputError

BITS = {"fp16": 16, "int8": 8, "int4": 4}
"""Format of the weights -> bits of one."""

MAX_ROWS = 16
"""States of one launch: a matrix instruction has as many columns, so fewer cost the same."""

MAX_ACTIONS = 2048
"""Of one launch; AutoVLA has as many."""

TILE_ACTIONS = 16
"""Actions of one program."""

INT4_ZERO_POINT = 8
MASK_BITS = 32


def programs(actions: int) -> int:
    """Return how many programs one launch over `actions` has."""
    return -(-actions // TILE_ACTIONS)


def scratch_shape(actions: int, top: int) -> tuple[int, int]:
    """Return the shape of the int64 scratch memory, beside which an int32 counter is kept at 0."""
    return programs(actions) * top, MAX_ROWS


def pack_int4(codes: NDArray[np.int8], block: int) -> NDArray[np.uint8]:
    """Pack codes [N, H] of -8..7 into bytes [N, H / 2].

    Raises:
        InputError: H is no multiple of `block`, `block` is odd, or a code is out of range.
    """
    count, width = codes.shape
    if block % 2 or width % block or not (codes.min() >= -8 and codes.max() <= 7):
        raise InputError(
            f"int4 codes [{count}, {width}] of {codes.min()}..{codes.max()} in blocks of {block}: "
            "expected -8..7 in whole blocks of an even number."
        )
    nibbles = (codes + INT4_ZERO_POINT).astype(np.uint8).reshape(count, -1, 2, block // 2)
    packed: NDArray[np.uint8] = nibbles[:, :, 0] | nibbles[:, :, 1] << np.uint8(4)
    return packed.reshape(count, width // 2)


def unpack_int4(packed: NDArray[np.uint8], block: int) -> NDArray[np.int8]:
    """Return the codes [N, H] of packed bytes [N, H / 2]."""
    halves = packed.reshape(len(packed), -1, 1, block // 2)
    nibbles = np.concatenate([halves & 15, halves >> 4], axis=2)
    return nibbles.astype(np.int8).reshape(len(packed), -1) - np.int8(INT4_ZERO_POINT)


def dequantize(codes: NDArray[np.int8], scales: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the weights [N, H] of codes [N, H] with scales [N] or [N, blocks]."""
    count, width = codes.shape
    scales = scales.reshape(count, -1, 1)
    blocks = codes.reshape(count, scales.shape[1], -1)
    return (blocks * scales).astype(np.float32).reshape(count, width)


def pack_mask(allowed: NDArray[np.bool_]) -> NDArray[np.int32]:
    """Pack what the grammar allows, [m, N], into words [m, ceil(N / 32)], the lowest bit first."""
    padded = np.pad(allowed, ((0, 0), (0, -allowed.shape[1] % MASK_BITS)))
    return np.packbits(padded, axis=1, bitorder="little").view("<i4").astype(np.int32)
