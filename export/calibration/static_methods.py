"""How channels are rescaled for NVIDIA's engines, which round otherwise than a CPU's.

Their int4 maps a block's largest weight to 7, not to -8, and their int8 inputs share one static
scale.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from autovla_rt.export.calibration.search import Method, awq, smooth_quant
from autovla_rt.export.quantize import INT8_MAX, SMALLEST_SCALE, int4_symmetric

Float = NDArray[np.float32]


def smooth_quant_static() -> Method:
    """int8 weights by output channel, all int8 inputs by one scale."""
    return replace(smooth_quant(), inputs=_int8_by_one_scale)


def awq_symmetric(block: int) -> Method:
    """int4 weights from -7 to 7 by block of inputs; inputs as they are."""
    return replace(awq(block), weights=lambda rows: int4_symmetric_rounded(rows, block))


STATIC_METHODS: dict[str, Callable[[int], Method]] = {
    "int8_sq": lambda _block: smooth_quant_static(),
    "int4_awq": awq_symmetric,
}


def int4_symmetric_rounded(rows: Float, block: int) -> Float:
    """Return what int4 makes of weights [n, K]."""
    codes, scales = int4_symmetric(rows, block)
    rounded: Float = codes.astype(np.float32) * np.repeat(scales, block, axis=1)
    return rounded


def _int8_by_one_scale(rows: Float) -> Float:
    scale = max(np.abs(rows).max() / np.float32(INT8_MAX), SMALLEST_SCALE)
    rounded: Float = np.rint(rows / scale) * scale
    return rounded
