"""The `plain` dialect: the `standard` one without what TensorRT lacks before 10.15.

Those versions (a Jetson Orin with JetPack 6 has 10.3) know neither TensorScatter nor Attention nor
RotaryEmbedding. Here each position of a cache is chosen between what it held and what is new,
rotation is arithmetic in float32, and attention two products around a softmax, over all positions
of the cache, those ahead masked. Opset 21 is the least that has int4. In TensorRT an output may not
lie where an input does, so a pass writes each cache to other memory than it reads.

At the 3B geometry with 2,048 positions a pass copies 75 MB of keys and values (36 layers x 2 x 2
heads x 128 x 2,048 in float16), which is 0.7 ms of an AGX Orin's 204.8 GB/s: predicted.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from math import sqrt
from typing import ClassVar

import numpy as np

from autovla_rt.export.graph.dialect import Formats
from autovla_rt.export.graph.ops import Value
from autovla_rt.export.graph.standard import (
    DIALECT as STANDARD,
)
from autovla_rt.export.graph.standard import (
    POSITIONS,
    SEQUENCE_LENGTH,
    WRITE_INDEX,
    StandardOps,
    padded,
)
from autovla_rt.export.weight_file import WeightFile
from autovla_rt.export.weight_source import WeightSource

OPSET, IR_VERSION = 21, 10

MASKED = -60_000.0
"""Added to the scores of positions ahead: float16 holds it, and e to it is zero."""


class PlainOps(StandardOps):
    """Collects nodes of operators that every TensorRT 10 has."""

    opsets: ClassVar[Mapping[str, int]] = {"": OPSET}
    ir_version = IR_VERSION

    def __init__(self, source: WeightSource, weights: WeightFile, formats: Formats) -> None:
        super().__init__(source, weights, formats)
        self._is_new = self._new_row = self._mask = self._group_mask = ""
        """For all layers, of each position of a cache: whether it is new, bool [capacity, 1]; which
        new row it is, int64 [capacity]; what is added to scores of it, [k, capacity], and to those
        of all query heads that share a head of the cache, [group * k, capacity]."""
        self._head_dim = 0

    def gelu(self, x: Value) -> Value:
        """Return x * Φ(x), exact; float32 where a layer in fp32 returns x."""
        exact = x in self._exact
        read, floats = (x, "float32") if exact else (self._narrow(x), self.formats.floats)
        (error,) = self.node("Erf", [self._product(read, self._number(1 / sqrt(2), floats))])
        (above,) = self.node("Add", [error, self._number(1.0, floats)])
        y = self._product(self._product(read, self._number(0.5, floats)), above)
        if exact:
            self._wide.add(y)
        return y

    def rotary(self, x: Value, cos: Value, sin: Value, num_heads: int) -> Value:
        """Rotate [B, S, heads*D] by position s, computed in float32; D is of attention, too."""
        self._head_dim = 2 * self._constants[cos].dims[1]
        return super().rotary(x, cos, sin, num_heads)

    def attention(self, query: Value, key: Value, value: Value, num_heads: int) -> Value:
        """Bidirectional softmax attention over [B, S, heads*D]."""
        self._check_scores()
        width = self._head_dim
        heads = [
            self._swapped(self.reshape(self._narrow(of), [0, 0, num_heads, width]))
            for of in (query, key, value)
        ]
        query, key, value = heads
        attended = self._swapped(self._softmax_attention(query, key, value, width))
        return self.reshape(attended, [0, 0, num_heads * width])

    def _attend(
        self, query: Value, keys: Value, values: Value, sizes: tuple[int, int, int]
    ) -> Value:
        """Causal attention of [1, k, heads*D] over the caches; `sizes` are (heads, kv_heads, D)."""
        num_heads, kv_heads, head_dim = sizes
        group = num_heads // kv_heads
        if not self._group_mask:
            self._group_mask = self.concat([self._mask] * group, axis=0)
        grouped = self.reshape(query, [1, -1, kv_heads, group, head_dim])
        (by_head,) = self.node("Transpose", [grouped], perm=[0, 2, 3, 1, 4])
        rows = self.reshape(by_head, [1, kv_heads, -1, head_dim])
        attended = self._softmax_attention(rows, keys, values, head_dim, self._group_mask)
        split = self.reshape(attended, [1, kv_heads, group, -1, head_dim])
        (by_row,) = self.node("Transpose", [split], perm=[0, 3, 1, 2, 4])
        return self.reshape(by_row, [1, -1, num_heads * head_dim])

    def _softmax_attention(
        self, query: Value, key: Value, value: Value, head_dim: int, mask: Value | None = None
    ) -> Value:
        """[B, heads, m, D], [B, heads, n, D] twice -> [B, heads, m, D]; the mask is [m, n].

        In four dimensions, without broadcasting, TensorRT for RTX fuses it.
        """
        scale = self._number(1 / sqrt(head_dim), self.formats.floats)
        turned = self.node("Transpose", [key], perm=[0, 1, 3, 2])
        operands = [self._product(query, scale), *turned]
        (scores,) = self.node("MatMul", operands)
        if mask is not None:
            (scores,) = self.node("Add", [scores, mask])
        return self.node("MatMul", [*self.node("Softmax", [scores], axis=-1), value])[0]

    def _declare_positions(self, head_dim: int) -> list[Value]:
        """Declare the inputs that all layers share; returns the angles [k, D/2] in float32.

        Raises:
            ValueError: the cache's size is not fixed.
        """
        if self.formats.capacity is None:
            raise ValueError("the plain dialect needs the capacity of the cache")
        angles = super()._declare_positions(head_dim)
        places = self.constant("places", np.arange(self.formats.capacity))
        (offset,) = self.node("Sub", [places, WRITE_INDEX])
        (count,) = self.node("Sub", [SEQUENCE_LENGTH, WRITE_INDEX])
        (below,) = self.node("Less", [offset, count])
        (above,) = self.node("GreaterOrEqual", [offset, self.integers(0)])
        (is_new,) = self.node("And", [below, above])
        (self._is_new,) = self.node("Unsqueeze", [is_new, self.integers(1)])
        (last,) = self.node("Sub", [count, self.integers(1)])
        (self._new_row,) = self.node("Max", [*self.node("Min", [offset, last]), self.integers(0)])
        (ahead,) = self.node("Greater", [places, self.reshape(POSITIONS, [-1, 1])])
        floats = self.formats.floats
        inputs = [ahead, self._number(MASKED, floats), self._number(0.0, floats)]
        (self._mask,) = self.node("Where", inputs)
        return angles

    def _angles_of(self, table: Value, positions: Value) -> Value:
        """Return rows [k, D/2] of a rotary table."""
        return self.gather(table, self.reshape(positions, [-1]), axis=0)

    def _rotated(self, x: Value, num_heads: int) -> Value:
        cos, sin = self._angles
        return self._turned(x, cos, sin, num_heads)

    def _write(self, past: Value, new: Value, present: Value) -> None:
        """Append what makes a cache with [1, kv_heads, k, D] written into it."""
        spread = self.gather(new, self._new_row, axis=2)
        self._append("", "Where", [self._is_new, spread, past], [present], {})

    def _number(self, value: float, floats: str) -> Value:
        """Make a scalar constant in a float type."""
        return self.constant(f"number_{value:g}_{floats}", np.array(value, floats))


def plain_ops(source: WeightSource, weights: WeightFile, formats: Formats) -> PlainOps:
    """Return the operations of one graph; MLPs are padded where their format needs it."""
    return PlainOps(padded(source, formats), weights, formats)


DIALECT = replace(STANDARD, ops=plain_ops)
