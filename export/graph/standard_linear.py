"""How the `standard` dialect lowers a linear layer: a Gemm over weights as QuantizeLinear has them.

Weights lie as in the checkpoint, [N, K], so they stream, and Gemm transposes; TensorRT fuses
DequantizeLinear into it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from autovla_rt.export.floats import fitting
from autovla_rt.export.graph.onnx_ops import OnnxOps, vector
from autovla_rt.export.graph.ops import Value
from autovla_rt.export.graph.qdq import QDQ, CodeType, QdqFormat, grouped, input_scale
from autovla_rt.export.weight_file import ELEMENT_TYPES
from autovla_rt.export.weight_source import matrix_chunks, matrix_shape

Modules = tuple[str, ...]


class Linear(Protocol):
    """A number format's lowering of y = x Wᵀ + b."""

    def lower(self, graph: OnnxOps, x: Value, modules: Modules, bias: bool) -> Value:
        """Append the nodes and store the weights; returns y [M, N]."""
        ...


class FloatLinear:
    """Gemm over weights in the graph's float type."""

    def lower(self, graph: OnnxOps, x: Value, modules: Modules, bias: bool) -> Value:
        """Append one Gemm."""
        name, floats = _name(modules), graph.formats.floats
        if name not in graph.weights:
            shape = matrix_shape(graph.source, modules)
            chunks = matrix_chunks(graph.source, modules)
            graph.weights.add(name, floats, shape, (fitting(name, of, floats) for of in chunks))
        return _gemm(graph, x, graph.stored(name), modules, bias)


class QdqLinear:
    """Gemm over dequantized weights and, where the format says so, rounded inputs.

    One instance serves one graph: it remembers which values are rounded already.
    """

    def __init__(self, qdq: QdqFormat) -> None:
        self._qdq = qdq
        self._rounded: dict[Value, Value] = {}

    def lower(self, graph: OnnxOps, x: Value, modules: Modules, bias: bool) -> Value:
        """Append DequantizeLinear of the weights, Q/DQ of the inputs and a Gemm.

        Raises:
            TargetError: a block does not divide the layer's inputs.
            ValueError: inputs are rounded, but there is no calibration.
        """
        name = f"{_name(modules)}.{self._qdq.weights.element}"
        if name not in graph.weights:
            self._store(graph, name, modules)
        inputs = [graph.stored(name), graph.stored(f"{name}.scale")]
        if self._qdq.blocked:
            block = graph.formats.int4_block
            (weights,) = graph.node("DequantizeLinear", inputs, axis=1, block_size=block)
        else:
            (weights,) = graph.node("DequantizeLinear", inputs, axis=0)
        if self._qdq.inputs is not None:
            x = self._round(graph, x, modules[0], self._qdq.inputs)
        return _gemm(graph, x, weights, modules, bias)

    def _store(self, graph: OnnxOps, name: str, modules: Modules) -> None:
        shape, code_type = matrix_shape(graph.source, modules), self._qdq.weights
        floats = graph.formats.floats
        scales = []

        def codes() -> Iterator[NDArray[np.generic]]:
            for chunk in matrix_chunks(graph.source, modules):
                values = grouped(self._qdq, graph.formats, chunk, modules[0])
                scale = code_type.scale(values, floats)
                scales.append(scale)
                yield code_type.bytes(
                    code_type.codes(values, scale[..., None]).reshape(chunk.shape)
                )

        graph.weights.add(name, code_type.element, shape, codes())
        stacked = np.concatenate(scales).astype(floats)
        if not self._qdq.blocked:
            stacked = stacked[:, 0]
        graph.weights.add(f"{name}.scale", floats, stacked.shape, [stacked])

    def _round(self, graph: OnnxOps, x: Value, module: str, codes: CodeType) -> Value:
        if x not in self._rounded:
            scale = input_scale(codes, graph.formats, module).astype(graph.formats.floats)
            stored = graph.constant(f"{module}.input_scale", scale)
            element = ELEMENT_TYPES[codes.element]
            (quantized,) = graph.node("QuantizeLinear", [x, stored], output_dtype=element)
            (self._rounded[x],) = graph.node("DequantizeLinear", [quantized, stored])
        return self._rounded[x]


def _name(modules: Modules) -> str:
    return "+".join(modules) + ".weight"


def _gemm(graph: OnnxOps, x: Value, weights: Value, modules: Modules, bias: bool) -> Value:
    inputs = [x, weights, *([_bias(graph, modules)] if bias else [])]
    return graph.node("Gemm", inputs, transB=1)[0]


def _bias(graph: OnnxOps, modules: Modules) -> Value:
    names = [f"{module}.bias" for module in modules]
    stored, floats = "+".join(names), graph.formats.floats
    if stored not in graph.weights:
        joined = fitting(stored, vector(graph.source, names), floats)
        graph.weights.add(stored, floats, joined.shape, [joined])
    return graph.stored(stored)


LINEARS: dict[str, Callable[[], Linear]] = {
    "fp32": FloatLinear,
    "fp16": FloatLinear,
    **{name: partial(QdqLinear, qdq) for name, qdq in QDQ.items()},
}
"""Number format -> maker of its lowering. One lowering serves one graph."""
