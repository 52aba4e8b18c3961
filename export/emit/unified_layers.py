"""How ModelOpt's unified checkpoint stores a linear layer in each of its formats.

Names, types, shapes, packing and scales are those of ModelOpt 0.47's export_hf_checkpoint, except
pre_quant_scale: channels are rescaled where they are written, so no layer needs one, and readers
take a missing one for ones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from autovla_rt.export.emit.shards import Piece, Stored
from autovla_rt.export.floats import fitting
from autovla_rt.export.graph.dialect import Ranges
from autovla_rt.export.quantize import (
    FP4_BLOCK,
    FP8_MAX,
    INT8_MAX,
    SMALLEST_SCALE,
    fp8,
    int4_symmetric,
    int8_per_channel,
    nvfp4,
    nvfp4_scale,
)
from autovla_rt.export.tensors.tensor_info import TensorInfo
from autovla_rt.export.weight_source import WeightSource, matrix_chunks, matrix_shape

Float = NDArray[np.float32]

F32, F16, I8, U8 = (np.dtype(of) for of in (np.float32, np.float16, np.int8, np.uint8))
F8 = np.dtype(ml_dtypes.float8_e4m3fn)


@dataclass(frozen=True)
class Layer:
    """A linear layer to be stored.

    Attributes:
        source: The checkpoint, rescaled.
        name: Of the layer.
        ranges: Of a calibration; None without one.
        block: Inputs that share an int4 scale.
        fused: Layers that readers compute as one with it, itself among them: they share the scale
            of nvfp4's scales.
    """

    source: WeightSource
    name: str
    ranges: Ranges | None = None
    block: int = 128
    fused: tuple[str, ...] = ()

    @property
    def weight(self) -> str:
        """Name of its weights."""
        return f"{self.name}.weight"

    @property
    def scale(self) -> str:
        """Name of their scales."""
        return f"{self.name}.weight_scale"

    @property
    def shape(self) -> tuple[int, int]:
        """[N, K] of its weights."""
        return matrix_shape(self.source, (self.name,))

    def chunks(self) -> Iterator[Float]:
        """Yield consecutive rows of its weights, an even number but at the end."""
        return matrix_chunks(self.source, (self.name,))


def float16_tensor(source: WeightSource, name: str) -> Stored:
    """Store any tensor in float16.

    Raises:
        CheckpointError: while it is written: a value is too large.
    """
    shape = source.shape(name)

    def pieces() -> Iterator[Piece]:
        if len(shape) == 1:
            yield name, fitting(name, source.rows(name, 0, shape[0]), "float16")
            return
        for rows in matrix_chunks(source, (name.removesuffix(".weight"),)):
            yield name, fitting(name, rows, "float16")

    return Stored({name: TensorInfo(shape, F16)}, pieces)


def kv_scale(name: str, largest: Callable[[], Float]) -> Stored:
    """Store the fp8 scale of the keys or values that are kept, from their largest magnitudes."""
    info = TensorInfo((), F32)
    return Stored({name: info}, lambda: [(name, _scale(largest(), FP8_MAX))])


def int8_weights(layer: Layer) -> Stored:
    """Weights in int8 with a scale for each output channel [N]."""
    count, width = layer.shape

    def pieces() -> Iterator[Piece]:
        for rows in layer.chunks():
            codes, scales = int8_per_channel(rows)
            yield layer.weight, codes
            yield layer.scale, scales

    infos = {
        layer.weight: TensorInfo((count, width), I8),
        layer.scale: TensorInfo((count,), F32),
    }
    return Stored(infos, pieces)


def int8_weights_and_inputs(layer: Layer) -> Stored:
    """`int8_weights`, and the one scale that all inputs are rounded with."""
    return _with_input_scale(layer, int8_weights(layer), INT8_MAX)


def int4_weights(layer: Layer) -> Stored:
    """Weights in int4 [N/2, K], two rows in a byte, with a scale for each block [N, K/block].

    The row of even number is in the low nibble, as two's complement.
    """
    count, width = layer.shape

    def pieces() -> Iterator[Piece]:
        for rows in layer.chunks():
            codes, scales = int4_symmetric(rows, layer.block)
            nibbles = codes.view(np.uint8) & 15
            yield layer.weight, nibbles[0::2] | nibbles[1::2] << 4
            yield layer.scale, scales

    infos = {
        layer.weight: TensorInfo((count // 2, width), U8),
        layer.scale: TensorInfo((count, width // layer.block), F32),
    }
    return Stored(infos, pieces)


def fp8_weights_and_inputs(layer: Layer) -> Stored:
    """Weights in float8 e4m3 with one scale, and the one scale of all inputs."""

    def pieces() -> Iterator[Piece]:
        largest = np.array([np.abs(rows).max() for rows in layer.chunks()])
        scale = _scale(largest, FP8_MAX)
        for rows in layer.chunks():
            yield layer.weight, fp8(rows, np.float32(scale))
        yield layer.scale, scale

    infos = {layer.weight: TensorInfo(layer.shape, F8), layer.scale: TensorInfo((), F32)}
    return _with_input_scale(layer, Stored(infos, pieces), FP8_MAX)


def fp4_weights_and_inputs(layer: Layer) -> Stored:
    """Weights in float4 e2m1 [N, K/2] with float8 scales [N, K/16], and the scales' own scales.

    One of the weights' scales (weight_scale_2) and one of the inputs', which readers compute.
    """
    count, width = layer.shape
    name, input_name, ranges = f"{layer.scale}_2", f"{layer.name}.input_scale", layer.ranges
    if ranges is None:
        raise ValueError(f"{layer.name}: the scale of its input needs a calibration")

    def pieces() -> Iterator[Piece]:
        chunks = matrix_chunks(layer.source, layer.fused)
        scale = nvfp4_scale(max(float(np.abs(rows).max()) for rows in chunks))
        for rows in layer.chunks():
            packed, scales = nvfp4(rows, scale)
            yield layer.weight, packed
            yield layer.scale, scales
        yield name, np.array(scale)
        yield input_name, np.array(nvfp4_scale(float(ranges.largest_input(layer.name).max())))

    infos = {
        layer.weight: TensorInfo((count, width // 2), U8),
        layer.scale: TensorInfo((count, width // FP4_BLOCK), F8),
        name: TensorInfo((), F32),
        input_name: TensorInfo((), F32),
    }
    return Stored(infos, pieces)


def _with_input_scale(layer: Layer, weights: Stored, most: int) -> Stored:
    name, ranges = f"{layer.name}.input_scale", layer.ranges
    if ranges is None:
        raise ValueError(f"{layer.name}: the scale of its input needs a calibration")

    def pieces() -> Iterator[Piece]:
        yield from weights.pieces()
        yield name, _scale(ranges.largest_input(layer.name), most)

    return Stored({**weights.infos, name: TensorInfo((), F32)}, pieces)


def _scale(largest: Float, most: int) -> NDArray[np.float32]:
    """Scale [] that maps the largest magnitude to `most`; 1 where all are zero."""
    scale = np.float32(largest.max() / most)
    return np.array(scale if scale > SMALLEST_SCALE else 1, np.float32)
