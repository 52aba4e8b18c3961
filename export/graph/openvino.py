"""The `openvino` dialect: standard operators, in the forms that OpenVINO's CPU plugin fuses.

Weights are stored in 8 or 4 bits and multiplied by their scales in the graph; the plugin multiplies
them as integers by activations that it quantizes for itself, some values of a row at a time
(`autovla_rt.openvino_model`). The graph attends to the positions of its own pass alone: the KV
cache is put in when it is opened, because the operator that has one cannot be stored.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autovla_rt.errors import TargetError
from autovla_rt.export.graph.dialect import Dialect, Formats
from autovla_rt.export.graph.ops import FLOATS, Value
from autovla_rt.export.quantize import int4_blockwise, int8_per_channel
from autovla_rt.export.weight_file import WeightFile
from autovla_rt.export.weight_source import WeightSource, matrix_chunks, matrix_shape
from autovla_rt.openvino_library import ov
from autovla_rt.openvino_model import ATTENDED, KEY, QUERY, SUM, VALUE

ops = ov.opset15

TO_SIGNED = np.uint8(0x88)
"""Turns two 4-bit codes of zero point 8 into two signed ones."""

Node = Any
"""openvino.Node: the library has no types of its own."""

Quantized = tuple[NDArray[np.generic], NDArray[np.float32]]
"""Codes and scales."""


class OpenVinoOps:
    """Collects nodes for one model; weights go to a file of which the model maps its own.

    Args:
        source: The checkpoint.
        weights: Takes the weights on their way; the saved model does not need it.
        formats: Of the weights, keys of `WEIGHTS`.
    """

    def __init__(self, source: WeightSource, weights: WeightFile, formats: Formats) -> None:
        self._source = source
        self._weights = weights
        self._formats = formats
        self._block = formats.int4_block
        self._values: dict[Value, Any] = {}
        self._parameters: list[Node] = []
        self._results: list[Node] = []
        self._mapped: list[NDArray[np.generic]] = []
        """Keeps alive what constants look at."""

    def input(self, name: str, dtype: str, shape: Sequence[int | str]) -> Value:
        """Declare a model input; a string names a dynamic dimension."""
        sizes = [size if isinstance(size, int) else -1 for size in shape]
        element = np.dtype("float32" if dtype == FLOATS else dtype)
        parameter = ops.parameter(sizes, element, name)
        parameter.output(0).set_names({name})
        self._parameters.append(parameter)
        self._values[name] = parameter.output(0)
        return name

    def output(self, value: Value, name: str, dtype: str, shape: Sequence[int | str]) -> None:
        """Declare a model output; raises ValueError where it is of another type or rank."""
        result = ops.result(self._values[value])
        found = result.get_element_type().to_dtype(), result.get_output_partial_shape(0).rank
        if found[0] != dtype or found[1].get_length() != len(shape):
            raise ValueError(f"{name}: declared as {dtype} {shape}, is {result}")
        result.output(0).set_names({name})
        self._results.append(result)

    def constant(self, name: str, array: NDArray[np.generic]) -> Value:
        """Make a small constant, once."""
        if name not in self._values:
            self._values[name] = ops.constant(np.ascontiguousarray(array)).output(0)
        return name

    def linear(self, x: Value, *modules: str, bias: bool) -> Value:
        """[M, K] -> [M, N] in the first module's format."""
        weight = WEIGHTS[self._formats.of(modules[0])](self, modules)
        y = ops.matmul(self._values[x], weight, False, True)
        if bias:
            parts = [self._rows(f"{module}.bias") for module in modules]
            y = ops.add(y, ops.constant(np.concatenate(parts)[None]))
        return self._named(y)

    def rms_norm(self, x: Value, weight: str, epsilon: float) -> Value:
        """Return x / rms(x) * weight over the last axis."""
        return self._named(self._rms_norm(self._values[x], weight, epsilon))

    def add_rms_norm(
        self, x: Value, delta: Value, weight: str, epsilon: float
    ) -> tuple[Value, Value]:
        """Return (x + delta, rms_norm(x + delta)); the sum is named by the weight."""
        total = ops.add(self._values[x], self._values[delta])
        total.set_friendly_name(f"{weight}{SUM}")
        return self._named(total), self._named(self._rms_norm(total, weight, epsilon))

    def silu_mul(self, gate: Value, up: Value) -> Value:
        """silu(gate) * up."""
        return self._named(ops.multiply(ops.swish(self._values[gate]), self._values[up]))

    def gelu(self, x: Value) -> Value:
        """Return x * Φ(x), exact."""
        return self._named(ops.gelu(self._values[x], "erf"))

    def reshape(self, x: Value, shape: Sequence[int]) -> Value:
        """Reshape; -1 is inferred."""
        return self._named(_reshape(self._values[x], shape))

    def gather(self, x: Value, index: Value, axis: int) -> Value:
        """Select by an index."""
        return self._named(ops.gather(self._values[x], self._values[index], _integer(axis)))

    def split(self, x: Value, parts: int, axis: int) -> list[Value]:
        """Cut into equal parts."""
        cut = ops.split(self._values[x], _integer(axis), parts)
        return [self._add(output) for output in cut.outputs()]

    def slice(self, x: Value, start: int, stop: int, axis: int) -> Value:
        """x[start:stop] along one axis."""
        begin, end, step, along = (_integers(size) for size in (start, stop, 1, axis))
        return self._named(ops.slice(self._values[x], begin, end, step, along))

    def concat(self, parts: Sequence[Value], axis: int) -> Value:
        """Join along one axis."""
        return self._named(ops.concat([self._values[part] for part in parts], axis))

    def rotary(self, x: Value, cos: Value, sin: Value, num_heads: int) -> Value:
        """Rotate [B, S, heads*D] by position s."""
        length, half = self._values[cos].get_partial_shape().to_shape()
        tables = [self._table(table, [1, length, 1, 2 * half]) for table in (cos, sin)]
        states = _reshape(self._values[x], [-1, length, num_heads, 2 * half])
        rotated = _rotated(states, tables, 2 * half)
        return self._named(_reshape(rotated, [-1, length, num_heads * 2 * half]))

    def attention(self, query: Value, key: Value, value: Value, num_heads: int) -> Value:
        """Bidirectional softmax attention over [B, S, heads*D]."""
        shape = self._values[query].get_partial_shape()
        length, width = shape[1].get_length(), shape[2].get_length()
        heads = [
            _transpose(_reshape(self._values[part], [-1, length, num_heads, width // num_heads]))
            for part in (query, key, value)
        ]
        attended = ops.scaled_dot_product_attention(*heads, causal=False)
        return self._named(_reshape(_transpose(attended), [-1, length, width]))

    def cached_attention(
        self, qkv: Value, layer: int, num_heads: int, num_kv_heads: int, head_dim: int
    ) -> Value:
        """Causal grouped-query attention over the pass alone, named so that a cache can be put in.

        See `autovla_rt.openvino_model.put_kv_cache`.
        """
        if layer == 0:
            for table in ("cos", "sin"):
                self.input(table, "float32", ["k", head_dim // 2])
        widths = [num_heads * head_dim, num_kv_heads * head_dim, num_kv_heads * head_dim]
        rows = _reshape(self._values[qkv], [-1, sum(widths)])
        parts = ops.variadic_split(rows, _integer(1), ops.constant(np.array(widths, np.int64)))
        tables = [self._table(table, [-1, 1, 1, head_dim]) for table in ("cos", "sin")]
        named = {}
        for name, output, width in zip((QUERY, KEY, VALUE), parts.outputs(), widths, strict=True):
            if name != VALUE:
                heads = _reshape(output, [-1, width // head_dim, 1, head_dim])
                output = _rotated(heads, tables, head_dim).output(0)
            named[name] = _reshape(output, [-1, width])
            named[name].set_friendly_name(f"{name}.{layer}")
        query, key, value = (
            _transpose(_reshape(named[name], [1, -1, width // head_dim, head_dim]))
            for name, width in zip((QUERY, KEY, VALUE), widths, strict=True)
        )
        group = ops.constant(np.repeat(np.arange(num_kv_heads), num_heads // num_kv_heads))
        attended = ops.scaled_dot_product_attention(
            query,
            *(ops.gather(part, group, _integer(1)) for part in (key, value)),
            causal=True,
        )
        joined = _reshape(_transpose(attended), [-1, widths[0]])
        joined.set_friendly_name(f"{ATTENDED}.{layer}")
        return self._named(_reshape(joined, [1, -1, widths[0]]))

    def save(self, path: Path, name: str) -> None:
        """Write `path` (.xml) and the weights beside it (.bin)."""
        model = ov.Model(self._results, self._parameters, name)
        ov.serialize(model, str(path), str(path.with_suffix(".bin")))

    def fp32_weight(self, modules: tuple[str, ...]) -> Node:
        """[N, K] of several modules, stacked."""
        name = "+".join(modules)
        shape = matrix_shape(self._source, modules)
        if name not in self._weights:
            self._weights.add(name, "float32", shape, matrix_chunks(self._source, modules))
        return self._constant(name, shape, ov.Type.f32)

    def int8_weight(self, modules: tuple[str, ...]) -> Node:
        """The same in int8, with a scale for each row."""
        shape = matrix_shape(self._source, modules)
        self._quantize(modules, "int8", shape, int8_per_channel)
        return self._scaled("+".join(modules), shape, ov.Type.i8)

    def int4_weight(self, modules: tuple[str, ...]) -> Node:
        """The same in int4, with a scale for each `int4_block` inputs of a row."""
        name, block = "+".join(modules), self._block
        rows, width = matrix_shape(self._source, modules)
        if width % block:
            raise TargetError(
                f"int4 block {block}: expected one that divides the {width} inputs of {name}. "
                "Choose one with --int4-block, or another precision."
            )

        def signed(chunk: NDArray[np.float32]) -> Quantized:
            packed, scales = int4_blockwise(chunk, block)
            return np.bitwise_xor(packed, TO_SIGNED), scales

        self._quantize(modules, "uint8", (rows, width // block, block // 2), signed)
        return _reshape(
            self._scaled(name, (rows, width // block, block), ov.Type.i4), [rows, width]
        )

    def _quantize(
        self,
        modules: tuple[str, ...],
        dtype: str,
        shape: tuple[int, ...],
        quantize: Callable[[NDArray[np.float32]], Quantized],
    ) -> None:
        """Store the codes of stacked modules, and a scale for each run of the last axis."""
        name = "+".join(modules)
        if name in self._weights:
            return
        scales: list[NDArray[np.float32]] = []

        def codes() -> Iterator[NDArray[np.generic]]:
            for chunk in matrix_chunks(self._source, modules):
                quantized, scale = quantize(chunk)
                scales.append(scale)
                yield quantized

        self._weights.add(name, dtype, shape, codes())
        self._weights.add(f"{name}.scale", "float32", (*shape[:-1], 1), scales)

    def _scaled(self, name: str, shape: tuple[int, ...], element: Any) -> Node:
        codes = ops.convert(self._constant(name, shape, element), np.float32)
        scales = self._constant(f"{name}.scale", (*shape[:-1], 1), ov.Type.f32)
        return ops.multiply(codes, scales)

    def _constant(self, name: str, shape: Sequence[int], element: Any) -> Node:
        """Make a constant of a stored tensor, which is not copied."""
        array = self._weights.mapped(name)
        self._mapped.append(array)
        tensor = ov.Tensor(array, ov.Shape(list(shape)), element)
        return ov.op.Constant(tensor, shared_memory=True)

    def _rms_norm(self, x: Node, weight: str, epsilon: float) -> Node:
        square = ops.reduce_mean(ops.power(x, ops.constant(np.float32(2))), _integers(-1), True)
        root = ops.sqrt(ops.add(square, ops.constant(np.float32(epsilon))))
        normed = ops.multiply(x, ops.divide(ops.constant(np.float32(1)), root))
        return ops.multiply(normed, ops.constant(self._rows(weight)))

    def _table(self, name: Value, shape: Sequence[int]) -> Node:
        """Return a rotary table [n, D/2] for both halves of a head, in a shape [..., D]."""
        key = f"{name} of both halves"
        if key not in self._values:
            half = self._values[name]
            self._values[key] = _reshape(ops.concat([half, half], -1), shape).output(0)
        return self._values[key]

    def _rows(self, name: str) -> NDArray[np.float32]:
        return self._source.rows(name, 0, self._source.shape(name)[0])

    def _named(self, node: Node) -> Value:
        return self._add(node.output(0))

    def _add(self, output: Any) -> Value:
        name = f"value_{len(self._values)}"
        self._values[name] = output
        return name


WEIGHTS: dict[str, Callable[[OpenVinoOps, tuple[str, ...]], Node]] = {
    "fp32": OpenVinoOps.fp32_weight,
    "int8": OpenVinoOps.int8_weight,
    "int4": OpenVinoOps.int4_weight,
}
"""Precision -> how weights are stored."""


def _rotated(x: Node, tables: Sequence[Node], size: int) -> Node:
    """Rotate the last axis of x [a, b, c, size], whose halves are paired.

    In the form that the CPU plugin recognises and computes in one step.
    """
    start, half, end, step, axis = (_integers(i) for i in (0, size // 2, size, 1, 3))
    first = ops.slice(x, start, half, step, axis)
    second = ops.slice(x, half, end, step, axis)
    cos, sin = tables
    minus = ops.constant(np.full((1, 1, 1, 1), -1, np.float32))
    turned = ops.concat([ops.multiply(second, minus), first], -1)
    return ops.add(ops.multiply(x, cos), ops.multiply(turned, sin))


def _reshape(x: Node, shape: Sequence[int]) -> Node:
    return ops.reshape(x, ops.constant(np.array(shape, np.int64)), False)


def _transpose(x: Node) -> Node:
    """[a, b, c, d] -> [a, c, b, d]."""
    return ops.transpose(x, ops.constant(np.array([0, 2, 1, 3], np.int64)))


def _integer(value: int) -> Node:
    return ops.constant(np.int64(value))


def _integers(value: int) -> Node:
    return ops.constant(np.array([value], np.int64))


DIALECT = Dialect(
    OpenVinoOps,
    suffix=".xml",
    keeps_weights=False,
    libraries=("openvino",),
    formats=tuple(WEIGHTS),
)
