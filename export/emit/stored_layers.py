"""How ModelOpt's checkpoints store a linear layer in each of its formats.

Names, types, shapes, packing and scales are those of ModelOpt 0.47's export_hf_checkpoint and
export_tensorrt_llm_checkpoint, except what inputs are multiplied by before they are rounded:
channels are rescaled where they are written, so that is one everywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from autovla_rt.export.emit.shards import Piece, Stored
from autovla_rt.export.floats import fitting
from autovla_rt.export.graph.dialect import Ranges
from autovla_rt.export.quantize import (
    FP4_BLOCK,
    FP4_MAX,
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
class Layout:
    """Where two kinds of checkpoints differ.

    Attributes:
        weight_scale: Name of the weights' scales within a layer.
        input_scale: Name of the one scale of its inputs.
        single: Shape of a scale that stands alone.
        packed: Type of a byte with two int4 weights.
    """

    weight_scale: str
    input_scale: str
    single: tuple[int, ...]
    packed: np.dtype[np.generic]


UNIFIED = Layout("weight_scale", "input_scale", (), U8)
TENSORRT_LLM = Layout("weights_scaling_factor", "activation_scaling_factor", (1,), I8)


@dataclass(frozen=True)
class Layer:
    """A linear layer to be stored.

    Attributes:
        source: The checkpoint, rescaled.
        name: Of the layer where it is stored.
        modules: Names of the checkpoint's layers that it is stacked of; they read one value.
        layout: Of the checkpoint that is written.
        ranges: Of a calibration; None without one.
        block: Inputs that share an int4 scale.
        fused: Layers that readers compute as one with it, itself among them: they share the scale
            of nvfp4's scales.
    """

    source: WeightSource
    name: str
    modules: tuple[str, ...]
    layout: Layout = UNIFIED
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
        return f"{self.name}.{self.layout.weight_scale}"

    @property
    def shape(self) -> tuple[int, int]:
        """[N, K] of its weights."""
        return matrix_shape(self.source, self.modules)

    def chunks(self) -> Iterator[Float]:
        """Yield consecutive rows of its weights, an even number but at a module's end."""
        return matrix_chunks(self.source, self.modules)


def float16_tensor(source: WeightSource, name: str, stacked: Sequence[str] = ()) -> Stored:
    """Store a tensor in float16: that of the same name, or several `stacked` along axis 0.

    Raises:
        CheckpointError: while it is written: a value is too large.
    """
    parts = stacked or (name,)
    shapes = [source.shape(part) for part in parts]

    def pieces() -> Iterator[Piece]:
        for part, shape in zip(parts, shapes, strict=True):
            if len(shape) == 1:
                yield name, fitting(part, source.rows(part, 0, shape[0]), "float16")
                continue
            for rows in matrix_chunks(source, (part.removesuffix(".weight"),)):
                yield name, fitting(part, rows, "float16")

    count = sum(shape[0] for shape in shapes)
    return Stored({name: TensorInfo((count, *shapes[0][1:]), F16)}, pieces)


def float16_ones(name: str, count: int) -> Stored:
    """Store [count] ones in float16."""
    return Stored({name: TensorInfo((count,), F16)}, lambda: [(name, np.ones(count, F16))])


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
            packed = nibbles[0::2] | nibbles[1::2] << 4
            yield layer.weight, packed.view(layer.layout.packed)
            yield layer.scale, scales

    infos = {
        layer.weight: TensorInfo((count // 2, width), layer.layout.packed),
        layer.scale: TensorInfo((count, width // layer.block), F32),
    }
    return Stored(infos, pieces)


def fp8_weights_and_inputs(*layers: Layer) -> Stored:
    """Weights in float8 e4m3 with one scale for all these layers, and the one of all their inputs.

    They read one value.
    """
    single = layers[0].layout.single

    def pieces() -> Iterator[Piece]:
        chunks = (rows for layer in layers for rows in layer.chunks())
        scale = _scale(np.array([np.abs(rows).max() for rows in chunks]), FP8_MAX)
        for layer in layers:
            for rows in layer.chunks():
                yield layer.weight, fp8(rows, np.float32(scale))
            yield layer.scale, scale.reshape(single)

    weights = {layer.weight: TensorInfo(layer.shape, F8) for layer in layers}
    scales = {layer.scale: TensorInfo(single, F32) for layer in layers}
    stored = Stored(weights | scales, pieces)
    for layer in layers:
        stored = _with_input_scale(layer, stored, FP8_MAX)
    return stored


def fp4_weights_and_inputs(layer: Layer) -> Stored:
    """Weights in float4 e2m1 [N, K/2] with float8 scales [N, K/16], and the scales' own scales.

    One of the weights' scales (weight_scale_2) and one of the inputs', which readers compute.
    """
    count, width = layer.shape
    name = f"{layer.scale}_2"

    def pieces() -> Iterator[Piece]:
        chunks = matrix_chunks(layer.source, layer.fused)
        scale = nvfp4_scale(max(float(np.abs(rows).max()) for rows in chunks))
        for rows in layer.chunks():
            packed, scales = nvfp4(rows, scale)
            yield layer.weight, packed
            yield layer.scale, scales
        yield name, np.array(scale)

    infos = {
        layer.weight: TensorInfo((count, width // 2), U8),
        layer.scale: TensorInfo((count, width // FP4_BLOCK), F8),
        name: TensorInfo((), F32),
    }
    return _with_input_scale(layer, Stored(infos, pieces), FP4_MAX * FP8_MAX)


FORMATS: dict[str, Callable[[Layer], Stored]] = {
    "int8_sq": int8_weights_and_inputs,
    "int8_wo": int8_weights,
    "int4_awq": int4_weights,
    "fp8": fp8_weights_and_inputs,
    "nvfp4": fp4_weights_and_inputs,
}
"""Precision -> how a layer is stored; fp16 is as any other tensor."""


def _with_input_scale(layer: Layer, weights: Stored, most: int) -> Stored:
    name, ranges, single = (
        f"{layer.name}.{layer.layout.input_scale}",
        layer.ranges,
        layer.layout.single,
    )
    if ranges is None:
        raise ValueError(f"{layer.name}: the scale of its input needs a calibration")

    def pieces() -> Iterator[Piece]:
        yield from weights.pieces()
        yield name, _scale(ranges.largest_input(layer.modules[0]), most).reshape(single)

    return Stored({**weights.infos, name: TensorInfo(single, F32)}, pieces)


def _scale(largest: Float, most: int) -> NDArray[np.float32]:
    """Scale [] that maps the largest magnitude to `most`; 1 where all are zero."""
    scale = np.float32(largest.max() / most)
    return np.array(scale if scale > SMALLEST_SCALE else 1, np.float32)
