"""How the `ort` dialect lowers a linear layer at each precision.

Every lowering is batch-invariant: a row's result does not depend on what shares its pass, since
activation scales are per row (int8) or per block of a row (int4).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from autovla_rt.export.graph.onnx_ops import OnnxOps, vector
from autovla_rt.export.graph.ops import Value
from autovla_rt.export.quantize import (
    INT8_MAX,
    int4_blockwise,
    int8_blockwise,
    int8_per_channel,
)
from autovla_rt.export.weight_source import matrix_chunks, matrix_shape

CONTRIB = "com.microsoft"


class ContribOps(OnnxOps):
    """ONNX with ONNX Runtime's own operators."""

    def contrib(
        self, operator: str, inputs: Sequence[Value], outputs: int = 1, **attributes: Any
    ) -> list[Value]:
        """Append one node of ONNX Runtime's domain."""
        return self._append(CONTRIB, operator, inputs, self._names(operator, outputs), attributes)

    def bias(self, modules: Sequence[str]) -> Value:
        """Store the stacked biases of several modules."""
        name = "+".join(f"{module}.bias" for module in modules)
        if name not in self.weights:
            stacked = vector(self.source, [f"{module}.bias" for module in modules])
            self.weights.add(name, "float32", stacked.shape, [stacked])
        return self.stored(name)


class Linear(Protocol):
    """A precision's lowering of y = x Wᵀ + b."""

    def lower(self, graph: ContribOps, x: Value, modules: tuple[str, ...], bias: bool) -> Value:
        """Append the nodes and store the weights; returns y [M, N]."""
        ...


class Fp32Linear:
    """Gemm over float32 weights."""

    def lower(self, graph: ContribOps, x: Value, modules: tuple[str, ...], bias: bool) -> Value:
        """Append one Gemm."""
        name = "+".join(modules) + ".weight"
        if name not in graph.weights:
            shape = matrix_shape(graph.source, modules)
            graph.weights.add(name, "float32", shape, matrix_chunks(graph.source, modules))
        inputs = [x, graph.stored(name)] + ([graph.bias(modules)] if bias else [])
        return graph.node("Gemm", inputs, transB=1)[0]


class Int8Linear:
    """W8A8: int8 weights per output channel, uint8 activations with one scale per row.

    One instance serves one graph: it remembers which values are quantized already.

    r = max|x| of the row; QuantizeLinear(x / r, 1/127, zero point 128); an integer product; times
    r. Zero point 128 because ONNX Runtime's CPU kernels are 13-28 times slower at int8 x int8.
    """

    def __init__(self) -> None:
        self._quantized: dict[Value, tuple[Value, Value]] = {}

    def lower(self, graph: ContribOps, x: Value, modules: tuple[str, ...], bias: bool) -> Value:
        """Append activation quantization (shared by all users of x), product and rescaling."""
        name = "+".join(modules) + ".weight"
        if f"{name}.int8" not in graph.weights:
            self._store(graph, name, modules)
        codes, magnitude = self._activation(graph, x)
        (product,) = graph.contrib(
            "MatMulIntegerToFloat",
            [
                codes,
                graph.stored(f"{name}.int8"),
                graph.constant("activation_scale", np.array(1 / INT8_MAX, np.float32)),
                graph.stored(f"{name}.scale"),
                graph.constant("activation_zero_point", np.array(128, np.uint8)),
            ],
        )
        (y,) = graph.node("Mul", [product, magnitude])
        return graph.node("Add", [y, graph.bias(modules)])[0] if bias else y

    def _store(self, graph: ContribOps, name: str, modules: tuple[str, ...]) -> None:
        rows, width = matrix_shape(graph.source, modules)
        codes, scales = np.empty((width, rows), np.int8), np.empty(rows, np.float32)
        start = 0
        for chunk in matrix_chunks(graph.source, modules):
            stop = start + chunk.shape[0]
            quantized, scales[start:stop] = int8_per_channel(chunk)
            codes[:, start:stop] = quantized.T
            start = stop
        graph.weights.add(f"{name}.int8", "int8", codes.shape, [codes])
        graph.weights.add(f"{name}.scale", "float32", scales.shape, [scales])

    def _activation(self, graph: ContribOps, x: Value) -> tuple[Value, Value]:
        if x not in self._quantized:
            axis = graph.constant("last_axis", np.array([-1], np.int64))
            (absolute,) = graph.node("Abs", [x])
            (largest,) = graph.node("ReduceMax", [absolute, axis], keepdims=1)
            tiny = graph.constant("tiny", np.array(1e-20, np.float32))
            (magnitude,) = graph.node("Max", [largest, tiny])
            (unit,) = graph.node("Div", [x, magnitude])
            (codes,) = graph.node(
                "QuantizeLinear",
                [
                    unit,
                    graph.constant("activation_scale", np.array(1 / INT8_MAX, np.float32)),
                    graph.constant("activation_zero_point", np.array(128, np.uint8)),
                ],
            )
            self._quantized[x] = codes, magnitude
        return self._quantized[x]


class BlockLinear:
    """int4 or int8 weights, one scale per `block` inputs; MatMulNBits.

    Args:
        block: Inputs that share a scale.
        bits: Of a weight.
        accuracy_level: 4 lets ONNX Runtime's CPU kernel round activations to int8 too, with one
            scale per block of a row: 2-5 times faster for a few rows, and still batch-invariant. 1
            keeps them in float32.
    """

    def __init__(self, block: int, bits: int, accuracy_level: int) -> None:
        self._block, self._bits, self._level = block, bits, accuracy_level

    def lower(self, graph: ContribOps, x: Value, modules: tuple[str, ...], bias: bool) -> Value:
        """Append one MatMulNBits."""
        name = "+".join(modules) + f".weight.int{self._bits}"
        rows, width = matrix_shape(graph.source, modules)
        if name not in graph.weights:
            self._store(graph, name, modules, rows, width)
        inputs = [x, graph.stored(name), graph.stored(f"{name}.scale")]
        if bias:
            inputs += ["", "", graph.bias(modules)]
        return graph.contrib(
            "MatMulNBits",
            inputs,
            K=width,
            N=rows,
            bits=self._bits,
            block_size=self._block,
            accuracy_level=self._level,
        )[0]

    def _store(
        self, graph: ContribOps, name: str, modules: tuple[str, ...], rows: int, width: int
    ) -> None:
        blocks = -(-width // self._block)
        scales = np.empty((rows, blocks), np.float32)

        def codes() -> Iterator[NDArray[np.uint8]]:
            start = 0
            for chunk in matrix_chunks(graph.source, modules):
                packed, scale = BLOCKWISE[self._bits](chunk, self._block)
                scales[start : start + chunk.shape[0]] = scale
                start += chunk.shape[0]
                yield packed

        shape = (rows, blocks, self._block * self._bits // 8)
        graph.weights.add(name, "uint8", shape, codes())
        graph.weights.add(f"{name}.scale", "float32", scales.shape, [scales])


BLOCKWISE = {4: int4_blockwise, 8: int8_blockwise}
"""Bits of a weight -> how it is rounded."""

LINEARS: dict[str, Callable[[int], Linear]] = {
    "fp32": lambda _block: Fp32Linear(),
    "int8": lambda _block: Int8Linear(),
    "int8_wo": lambda block: BlockLinear(block, 8, accuracy_level=1),
    "int4": lambda block: BlockLinear(block, 4, accuracy_level=4),
}
"""Precision -> maker of its lowering, given the int4 block. One lowering serves one graph."""
