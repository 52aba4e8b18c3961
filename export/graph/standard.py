"""The `standard` dialect: ONNX's own operators, opset 24, strongly typed, for TensorRT.

TensorScatter writes new keys and values into the cache in place, Attention reads it up to
`nonpad_kv_seqlen`, and weights and activations are quantized by symmetric QuantizeLinear and
DequantizeLinear. Attention, the cache and products of float weights are in the graph's float type
(`Formats.floats`, float16 for TensorRT); the residual stream, which adds up over all layers, the
norms, the vision tower's rotation, what comes out of products of codes, layers in fp32 and what
MLPs make of those are float32. So graph inputs and outputs are float32, as in the other dialects,
but for patches, which a kernel writes, and the cache. What is float16 is held against a
calibration, where there is one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from autovla_rt.config import SPARE_POSITIONS
from autovla_rt.export.graph.dialect import Dialect, Formats
from autovla_rt.export.graph.float16 import INPUT, OUTPUT, ROTATED, SCORES
from autovla_rt.export.graph.onnx_ops import OnnxOps
from autovla_rt.export.graph.ops import Value
from autovla_rt.export.graph.qdq import STATIC, width_multiple
from autovla_rt.export.graph.standard_linear import LINEARS, Linear
from autovla_rt.export.passes.pad_mlp import PaddedMlps
from autovla_rt.export.weight_file import ELEMENT_TYPES, WeightFile
from autovla_rt.export.weight_source import WeightSource

OPSET, IR_VERSION = 24, 12

TYPE_KEEPING = frozenset({"Concat", "Gather", "Reshape", "Slice", "Split"})
"""Operators whose results have their first input's type."""

WRITE_INDEX, SEQUENCE_LENGTH, POSITIONS = "write_indices", "nonpad_kv_seqlen", "positions"
"""Inputs of a language model: int64 [1] positions kept so far; int64 [1] those and the new ones;
int64 [1, k] rows of the rotary tables."""


class StandardOps(OnnxOps):
    """Collects nodes for one graph of standard operators."""

    opsets: ClassVar[Mapping[str, int]] = {"": OPSET}
    ir_version = IR_VERSION

    def __init__(self, source: WeightSource, weights: WeightFile, formats: Formats) -> None:
        super().__init__(source, weights, formats)
        self._linears: dict[str, Linear] = {}
        self._wide: set[Value] = set()
        """Values in float32 whatever the graph's float type is."""
        self._exact: set[Value] = set()
        """Of these, what layers in fp32 return."""
        self._returned: dict[Value, list[str]] = {}
        """Of these, what linear layers return: names to check where it becomes float16."""
        self._latest = ""
        """The linear layer that attention's values go by."""
        self._casts: dict[tuple[Value, str], Value] = {}
        self._angles: list[Value] = []
        """Cosines and sines [1, k, D/2] of the new positions."""

    def node(
        self, operator: str, inputs: Sequence[Value], outputs: int = 1, **attributes: Any
    ) -> list[Value]:
        """Append one node."""
        results = super().node(operator, inputs, outputs, **attributes)
        if operator in TYPE_KEEPING and inputs[0] in self._wide:
            self._wide.update(results)
            self._returned.update(dict.fromkeys(results, self._returned.get(inputs[0], [])))
        return results

    def input(self, name: str, dtype: str, shape: Sequence[int | str]) -> Value:
        """Declare a graph input; a string names a dynamic dimension."""
        if dtype == "float32":
            self._wide.add(name)
        return super().input(name, dtype, shape)

    def output(self, value: Value, name: str, dtype: str, shape: Sequence[int | str]) -> None:
        """Declare a graph output."""
        super().output(self._cast(value, dtype), name, dtype, shape)

    def linear(self, x: Value, *modules: str, bias: bool) -> Value:
        """[M, K] -> [M, N] in the first module's format.

        Raises:
            TargetError: what becomes float16, or a format's block, does not fit.
        """
        name, self._latest = self.formats.of(modules[0]), modules[0]
        if name not in self._linears:
            self._linears[name] = LINEARS[name]()
        floats = self._linears[name].floats(self.formats)
        read = self._cast(x, floats)
        if self._is_narrow(x) or self._is_narrow(read):
            self._check(f"{modules[0]}.{INPUT}")
        y = self._linears[name].lower(self, read, modules, bias)
        names = [f"{module}.{OUTPUT}" for module in modules]
        if floats == "float32":
            self._wide.add(y)
            self._returned[y] = names
        else:
            self._check(*names)
        if name == "fp32":
            self._exact.add(y)
        return y

    def rms_norm(self, x: Value, weight: str, epsilon: float) -> Value:
        """Return x / rms(x) * weight over the last axis, in float32: who reads it narrows it."""
        wide = self._cast(x, "float32")
        (square,) = self.node("Mul", [wide, wide])
        (mean,) = self.node("ReduceMean", [square, self.integers(-1)], keepdims=1)
        small = self.constant(f"epsilon_{epsilon}", np.array(epsilon, np.float32))
        (root,) = self.node("Sqrt", self.node("Add", [mean, small]))
        (normed,) = self.node("Div", [wide, root])
        return self._float32("Mul", [normed, self.weight(weight)])[0]

    def add_rms_norm(
        self, x: Value, delta: Value, weight: str, epsilon: float
    ) -> tuple[Value, Value]:
        """Return (x + delta, rms_norm(x + delta)); the sum is float32."""
        terms = [self._cast(value, "float32") for value in (x, delta)]
        (total,) = self._float32("Add", terms)
        return total, self.rms_norm(total, weight, epsilon)

    def silu_mul(self, gate: Value, up: Value) -> Value:
        """silu(gate) * up; float32 where layers in fp32 return both."""
        exact = {gate, up} <= self._exact
        if not exact:
            gate, up = self._narrow(gate), self._narrow(up)
        (activated,) = self.node("Mul", [gate, *self.node("Sigmoid", [gate])])
        (gated,) = self.node("Mul", [activated, up])
        if exact:
            self._wide.add(gated)
        return gated

    def gelu(self, x: Value) -> Value:
        """Return x * Φ(x), exact; float32 where a layer in fp32 returns x."""
        if x in self._exact:
            return self._float32("Gelu", [x], approximate="none")[0]
        return self.node("Gelu", [self._narrow(x)], approximate="none")[0]

    def rotary(self, x: Value, cos: Value, sin: Value, num_heads: int) -> Value:
        """Rotate [B, S, heads*D] by position s, computed in float32.

        RotaryEmbedding would want tables for every sample of the batch.
        """
        self._check(f"{self._latest}.{ROTATED}")
        return self._turned(x, cos, sin, num_heads)

    def _turned(self, x: Value, cos: Value, sin: Value, num_heads: int) -> Value:
        """Rotate [B, S, heads*D] by angles [S, D/2] in float32; returns the graph's float type."""
        by_head = self.reshape(self._cast(x, "float32"), [0, 0, num_heads, -1])
        first, second = self.split(by_head, 2, axis=3)
        cos, sin = (self.node("Unsqueeze", [of, self.integers(1)])[0] for of in (cos, sin))
        low = self.node("Sub", [self._product(first, cos), self._product(second, sin)])
        high = self.node("Add", [self._product(second, cos), self._product(first, sin)])
        (turned,) = self._float32("Concat", [*low, *high], axis=3)
        return self._narrow(self.reshape(turned, [0, 0, -1]))

    def attention(self, query: Value, key: Value, value: Value, num_heads: int) -> Value:
        """Bidirectional softmax attention over [B, S, heads*D]."""
        self._check_scores()
        heads = {"q_num_heads": num_heads, "kv_num_heads": num_heads}
        inputs = [self._narrow(of) for of in (query, key, value)]
        return self.node("Attention", inputs, **heads)[0]

    def cached_attention(
        self, qkv: Value, layer: int, num_heads: int, num_kv_heads: int, head_dim: int
    ) -> Value:
        """Causal grouped-query attention over layer `layer`'s cache, rotated by the tables."""
        if layer == 0:
            self._angles = self._declare_positions(head_dim)
        widths = (count * head_dim for count in (num_heads, num_kv_heads, num_kv_heads))
        inputs = [self._narrow(qkv), self.integers(*widths)]
        query, key, value = self.node("Split", inputs, 3, axis=2)
        self._check(f"{self._latest}.{ROTATED}", f"{self._latest}.{SCORES}")
        query = self._rotated(query, num_heads)
        new = {"key": self._rotated(key, num_kv_heads), "value": value}
        sizes = num_kv_heads, head_dim
        keys, values = [self._update(f"{layer}.{part}", of, *sizes) for part, of in new.items()]
        return self._attend(query, keys, values, (num_heads, *sizes))

    def _attend(
        self, query: Value, keys: Value, values: Value, sizes: tuple[int, int, int]
    ) -> Value:
        """Causal attention of [1, k, heads*D] over the caches; `sizes` are (heads, kv_heads, D)."""
        num_heads, _, head_dim = sizes
        by_head = self._by_head(query, num_heads, head_dim)
        inputs = [by_head, keys, values, "", "", "", SEQUENCE_LENGTH]
        (attended,) = self.node("Attention", inputs, is_causal=1)
        return self.reshape(self._swapped(attended), [1, -1, num_heads * head_dim])

    def _declare_positions(self, head_dim: int) -> list[Value]:
        """Declare the inputs that all layers share; returns the new positions' angles."""
        for name in (WRITE_INDEX, SEQUENCE_LENGTH):
            self.input(name, "int64", [1])
        positions = self.input(POSITIONS, "int64", [1, "k"])
        capacity = self.formats.capacity
        rows = "rotary_rows" if capacity is None else capacity + SPARE_POSITIONS
        angles = []
        for name in ("cos_cache", "sin_cache"):
            table = self.input(name, "float32", [rows, head_dim // 2])
            angles.append(self._angles_of(table, positions))
        return angles

    def _angles_of(self, table: Value, positions: Value) -> Value:
        """Return rows [1, k, D/2] of a rotary table."""
        return self._narrow(self.gather(table, positions, axis=0))

    def _rotated(self, x: Value, num_heads: int) -> Value:
        return self.node("RotaryEmbedding", [x, *self._angles], num_heads=num_heads)[0]

    def _update(self, name: str, new: Value, num_kv_heads: int, head_dim: int) -> Value:
        """Write [1, k, kv_heads*D] into a cache [1, kv_heads, capacity, D]; returns all of it."""
        capacity = "capacity" if self.formats.capacity is None else self.formats.capacity
        shape = [1, num_kv_heads, capacity, head_dim]
        past = self.input(f"past_key_values.{name}", self.formats.floats, shape)
        present, by_head = f"present.{name}", self._by_head(new, num_kv_heads, head_dim)
        self._write(past, by_head, present)
        self._declare_output(present, self.formats.floats, shape)
        return present

    def _write(self, past: Value, new: Value, present: Value) -> None:
        """Append what makes a cache with [1, kv_heads, k, D] written into it."""
        self._append("", "TensorScatter", [past, new, WRITE_INDEX], [present], {"axis": 2})

    def _by_head(self, x: Value, count: int, head_dim: int) -> Value:
        """[1, k, count*D] -> [1, count, k, D]."""
        return self._swapped(self.reshape(x, [1, -1, count, head_dim]))

    def _swapped(self, x: Value) -> Value:
        return self.node("Transpose", [x], perm=[0, 2, 1, 3])[0]

    def _product(self, x: Value, y: Value) -> Value:
        return self.node("Mul", [x, y])[0]

    def _float32(self, operator: str, inputs: Sequence[Value], **attributes: Any) -> list[Value]:
        """Append a node that computes in float32."""
        results = self.node(operator, inputs, **attributes)
        self._wide.update(results)
        return results

    def _narrow(self, x: Value) -> Value:
        return self._cast(x, self.formats.floats)

    def _cast(self, x: Value, dtype: str) -> Value:
        """Return a float value in a float type, cast once."""
        if dtype == ("float32" if x in self._wide else self.formats.floats):
            return x
        if (x, dtype) not in self._casts:
            if dtype == "float16":
                self._check(*self._returned.get(x, ()))
            (cast,) = self.node("Cast", [x], to=ELEMENT_TYPES[dtype])
            self._casts[x, dtype] = cast
            if dtype == "float32":
                self._wide.add(cast)
        return self._casts[x, dtype]

    def _is_narrow(self, x: Value) -> bool:
        return self.formats.floats == "float16" and x not in self._wide

    def _check_scores(self) -> None:
        self._check(f"{self._latest}.{SCORES}")

    def _check(self, *values: str) -> None:
        """Hold values that are to be float16 against the calibration, by their names."""
        if self.formats.half is not None and self.formats.floats == "float16":
            for value in values:
                self.formats.half.check(value)


def standard_ops(source: WeightSource, weights: WeightFile, formats: Formats) -> StandardOps:
    """Return the operations of one graph; MLPs are padded where their format needs it."""
    return StandardOps(padded(source, formats), weights, formats)


def padded(source: WeightSource, formats: Formats) -> PaddedMlps:
    """Return a checkpoint with MLPs padded where their format needs it."""
    return PaddedMlps(source, lambda module: width_multiple(formats, module))


DIALECT = Dialect(
    standard_ops,
    suffix=".onnx",
    keeps_weights=True,
    libraries=("onnx",),
    formats=tuple(LINEARS),
    ranged=STATIC,
    floats="float16",
    prefix_at_load=True,
)
