"""Number formats of the `standard` dialect: what Quantize- and DequantizeLinear make of values.

All are symmetric (zero point 0, which is all that TensorRT takes), with positive scales. Activation
scales are static, of a calibration, so a row's result does not depend on what shares its pass.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from autovla_rt.errors import TargetError
from autovla_rt.export.graph.dialect import Formats
from autovla_rt.export.quantize import SMALLEST_SCALE

Float = NDArray[np.float32]


@dataclass(frozen=True)
class CodeType:
    """A type that codes are stored in; value = code * scale.

    Attributes:
        element: Its name in a weight file.
        lowest: Code that smaller values saturate at.
        span: Codes that the smallest and the largest value of a scale are mapped to at most.
        nearest: Rounds to codes, as float32.
        bytes: Packs codes [n, K], as float32, into bytes.
    """

    element: str
    lowest: int
    span: tuple[int, int]
    nearest: Callable[[Float], Float]
    bytes: Callable[[Float], NDArray[np.generic]]

    def scale(self, values: Float, floats: str) -> Float:
        """[..., n] -> [...] the least scale in a float type with which no value is clipped.

        Rounded up: float16 is coarse below 6e-5, where scales of small weights lie. Values so small
        that float32 has too few digits for their scale are as good as zero: 1.
        """
        low, high = self.span
        exact = np.maximum(values.max(axis=-1) / high, values.min(axis=-1) / low)
        scale = exact.astype(floats)
        scale = np.where(scale < exact, np.nextafter(scale, np.inf, dtype=floats), scale)
        return np.where(exact <= SMALLEST_SCALE, 1, scale).astype(np.float32)

    def codes(self, values: Float, scale: Float) -> Float:
        """Return the codes of values, as float32; `scale` broadcasts."""
        return self.nearest(np.clip(values / scale, self.lowest, self.span[1]))


def _e4m3(values: Float) -> NDArray[np.generic]:
    return values.astype(ml_dtypes.float8_e4m3fn)


def _nibbles(codes: Float) -> NDArray[np.generic]:
    bits = codes.astype(np.int8).view(np.uint8) & 15
    packed: NDArray[np.generic] = bits[:, 0::2] | (bits[:, 1::2] << 4)
    return packed


INT8 = CodeType("int8", -128, (-127, 127), np.rint, lambda codes: codes.astype(np.int8))
INT4 = CodeType("int4", -7, (-7, 7), np.rint, _nibbles)
"""As ModelOpt has it: the largest weight of a block is mapped to 7 or -7."""
FP8 = CodeType(
    "float8_e4m3fn",
    -448,
    (-448, 448),
    lambda values: _e4m3(values).astype(np.float32),
    lambda codes: _e4m3(codes).view(np.uint8),
)


@dataclass(frozen=True)
class QdqFormat:
    """How a linear layer is stored and computed.

    Attributes:
        weights: Type of their codes, with a scale for each output channel.
        blocked: Whether a scale is for `Formats.int4_block` inputs of a channel instead.
        inputs: Type that inputs are rounded to, with one scale; None leaves them float.
    """

    weights: CodeType
    blocked: bool = False
    inputs: CodeType | None = None

    def floats(self, formats: Formats) -> str:
        """Return the float type of scales, and of what the layer reads and returns.

        float32 where codes are multiplied by codes: in float16 TensorRT for RTX's compiled plans
        list the scales behind a product that is float16 already, and bare sums of codes are beyond
        it. That they would overflow is inferred from the plans, which were not executed.
        """
        return formats.floats if self.inputs is None else "float32"


QDQ = {
    "int8": QdqFormat(INT8, inputs=INT8),
    "int8_wo": QdqFormat(INT8),
    "int4": QdqFormat(INT4, blocked=True),
    "fp8": QdqFormat(FP8, inputs=FP8),
}
"""Number format of a linear layer -> what it says."""

STATIC = tuple(name for name, of in QDQ.items() if of.inputs is not None)
"""Formats that need a calibration's ranges."""


def width_multiple(formats: Formats, module: str) -> int:
    """Return what a layer's number of inputs must be a multiple of."""
    qdq = QDQ.get(formats.of(module))
    return formats.int4_block if qdq is not None and qdq.blocked else 1


def grouped(qdq: QdqFormat, formats: Formats, rows: Float, module: str) -> Float:
    """[n, K] weights -> [n, groups, size] that share a scale.

    Raises:
        TargetError: the block does not divide K.
    """
    size = formats.int4_block if qdq.blocked else rows.shape[1]
    if rows.shape[1] % size:
        raise TargetError(
            f"int4 block {size}: expected one that divides the {rows.shape[1]} inputs of {module}. "
            "Choose one with --int4-block, or another precision."
        )
    return rows.reshape(len(rows), -1, size)


def input_scale(codes: CodeType, formats: Formats, module: str) -> Float:
    """Return the static scale [] of a layer's inputs.

    Raises:
        ValueError: there is no calibration.
    """
    if formats.ranges is None:
        raise ValueError(f"{module}: inputs in {codes.element} need the ranges of a calibration")
    return codes.scale(formats.ranges.largest_input(module), "float32")


class QdqRounding:
    """Rounds what a linear layer reads as the graph's Q/DQ nodes do: for comparing with them."""

    def __init__(self, formats: Formats) -> None:
        self._formats = formats

    def weights(self, modules: tuple[str, ...], rows: Float) -> Float:
        """Round [n, K] weights."""
        qdq = QDQ.get(self._formats.of(modules[0]))
        if qdq is None:
            return rows
        values = grouped(qdq, self._formats, rows, modules[0])
        scale = qdq.weights.scale(values, qdq.floats(self._formats))[..., None]
        return (qdq.weights.codes(values, scale) * scale).reshape(rows.shape)

    def inputs(self, modules: tuple[str, ...], rows: Float) -> Float:
        """Round [M, K] inputs."""
        qdq = QDQ.get(self._formats.of(modules[0]))
        if qdq is None or qdq.inputs is None:
            return rows
        scale = input_scale(qdq.inputs, self._formats, modules[0])
        return qdq.inputs.codes(rows, scale) * scale
