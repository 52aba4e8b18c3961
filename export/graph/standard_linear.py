"""How the `standard` dialect lowers a linear layer: a Gemm over weights as QuantizeLinear has them.

Weights lie as in the checkpoint, [N, K], so they stream, and Gemm transposes; TensorRT fuses
DequantizeLinear into it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from itertools import chain
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from autovla_rt.export.floats import fitting
from autovla_rt.export.graph.dialect import Formats
from autovla_rt.export.graph.onnx_ops import OnnxOps, vector
from autovla_rt.export.graph.ops import Value
from autovla_rt.export.graph.qdq import QDQ, CodeType, QdqFormat, grouped, input_scale
from autovla_rt.export.weight_file import ELEMENT_TYPES
from autovla_rt.export.weight_source import matrix_chunks, matrix_shape

Modules = tuple[str, ...]

AXIS_0 = {"axis": 0}
"""Of DequantizeLinear: a scale for each row of the weights."""


class Linear(Protocol):
    """A number format's lowering of y = x Wᵀ + b."""

    def floats(self, formats: Formats) -> str:
        """Return the float type that it reads and returns."""
        ...

    def lower(self, graph: OnnxOps, x: Value, modules: Modules, bias: bool) -> Value:
        """Append the nodes and store the weights; returns y [M, N]."""
        ...


class FloatLinear:
    """Gemm over weights in a float type; without one, in the graph's."""

    def __init__(self, floats: str | None = None) -> None:
        self._floats = floats

    def floats(self, formats: Formats) -> str:
        """Return it."""
        return self._floats or formats.floats

    def lower(self, graph: OnnxOps, x: Value, modules: Modules, bias: bool) -> Value:
        """Append one Gemm."""
        name, floats = _name(modules), self.floats(graph.formats)
        if name not in graph.weights:
            shape = matrix_shape(graph.source, modules)
            chunks = matrix_chunks(graph.source, modules)
            graph.weights.add(name, floats, shape, (fitting(name, of, floats) for of in chunks))
        inputs = [x, graph.stored(name), *([_bias(graph, modules, floats)] if bias else [])]
        return graph.node("Gemm", inputs, transB=1)[0]


class QdqLinear:
    """Gemm over dequantized weights and, where the format says so, rounded inputs.

    One instance serves one graph: it remembers which values are rounded already.
    """

    def __init__(self, qdq: QdqFormat) -> None:
        self._qdq = qdq
        self._rounded: dict[Value, Value] = {}

    def floats(self, formats: Formats) -> str:
        """Return the format's."""
        return self._qdq.floats(formats)

    def lower(self, graph: OnnxOps, x: Value, modules: Modules, bias: bool) -> Value:
        """Append DequantizeLinear of the weights, Q/DQ of the inputs and a Gemm.

        An odd number of outputs gets a spare one, which is cut off: TensorRT for RTX expands the
        weights to float16 in memory otherwise, all of them in every pass (seen with a text head).

        Raises:
            TargetError: a block does not divide the layer's inputs.
            ValueError: inputs are rounded, but there is no calibration.
        """
        floats, rows = self.floats(graph.formats), matrix_shape(graph.source, modules)[0]
        name, spare = f"{_name(modules)}.{self._qdq.weights.element}", rows % 2
        if name not in graph.weights:
            self._store(graph, name, modules, spare)
        inputs = [graph.stored(name), graph.stored(f"{name}.scale")]
        axes = {"axis": 1, "block_size": graph.formats.int4_block} if self._qdq.blocked else AXIS_0
        (weights,) = graph.node("DequantizeLinear", inputs, **axes)
        if self._qdq.inputs is not None:
            x = self._round(graph, x, modules[0], self._qdq.inputs)
        operands = [x, weights, *([_bias(graph, modules, floats, spare)] if bias else [])]
        (y,) = graph.node("Gemm", operands, transB=1)
        return graph.slice(y, 0, rows, axis=1) if spare else y

    def _store(self, graph: OnnxOps, name: str, modules: Modules, spare: int) -> None:
        (rows, width), code_type = matrix_shape(graph.source, modules), self._qdq.weights
        floats = self.floats(graph.formats)
        scales = []

        def codes() -> Iterator[NDArray[np.generic]]:
            nothing = np.zeros((spare, width), np.float32)
            for chunk in chain(matrix_chunks(graph.source, modules), [nothing][:spare]):
                values = grouped(self._qdq, graph.formats, chunk, modules[0])
                scale = code_type.scale(values, floats)
                scales.append(scale)
                rounded = code_type.codes(values, scale[..., None])
                yield code_type.bytes(rounded.reshape(chunk.shape))

        graph.weights.add(name, code_type.element, (rows + spare, width), codes())
        stacked = np.concatenate(scales).astype(floats)
        if not self._qdq.blocked:
            stacked = stacked[:, 0]
        graph.weights.add(f"{name}.scale", floats, stacked.shape, [stacked])

    def _round(self, graph: OnnxOps, x: Value, module: str, codes: CodeType) -> Value:
        if x not in self._rounded:
            scale = graph.constant(
                f"{module}.input_scale", input_scale(codes, graph.formats, module)
            )
            element = ELEMENT_TYPES[codes.element]
            (quantized,) = graph.node("QuantizeLinear", [x, scale], output_dtype=element)
            (self._rounded[x],) = graph.node("DequantizeLinear", [quantized, scale])
        return self._rounded[x]


def _name(modules: Modules) -> str:
    return "+".join(modules) + ".weight"


def _bias(graph: OnnxOps, modules: Modules, floats: str, spare: int = 0) -> Value:
    """Store the stacked biases of several modules, and `spare` zeros."""
    names = [f"{module}.bias" for module in modules]
    stored = "+".join(names)
    if stored not in graph.weights:
        joined = np.pad(fitting(stored, vector(graph.source, names), floats), (0, spare))
        graph.weights.add(stored, floats, joined.shape, [joined])
    return graph.stored(stored)


LINEARS: dict[str, Callable[[], Linear]] = {
    "fp32": partial(FloatLinear, "float32"),
    "fp16": FloatLinear,
    **{name: partial(QdqLinear, qdq) for name, qdq in QDQ.items()},
}
"""Number format -> maker of its lowering. One lowering serves one graph."""
