"""The operation vocabulary that the model is written in; a dialect lowers it for one engine."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

FLOATS = "floats"

Value = str
"""Name of a tensor inside the graph."""


class Ops(Protocol):
    """What `graph/vision.py` and `graph/language.py` may call.

    Weights are named as in the checkpoint; the dialect reads, converts and stores them.
    """

    def input(self, name: str, dtype: str, shape: Sequence[int | str]) -> Value:
        """Declare a graph input; a string names a dynamic dimension.

        The type `FLOATS` is what the graph computes in.
        """
        ...

    def output(self, value: Value, name: str, dtype: str, shape: Sequence[int | str]) -> None:
        """Declare a graph output."""
        ...

    def constant(self, name: str, array: NDArray[np.generic]) -> Value:
        """Make a small constant."""
        ...

    def linear(self, x: Value, *modules: str, bias: bool) -> Value:
        """[M, K] -> [M, N]; the rows of several modules' weights are stacked into N."""
        ...

    def rms_norm(self, x: Value, weight: str, epsilon: float) -> Value:
        """Return x / rms(x) * weight over the last axis (Zhang & Sennrich 2019)."""
        ...

    def add_rms_norm(
        self, x: Value, delta: Value, weight: str, epsilon: float
    ) -> tuple[Value, Value]:
        """Return (x + delta, rms_norm(x + delta))."""
        ...

    def silu_mul(self, gate: Value, up: Value) -> Value:
        """silu(gate) * up."""
        ...

    def gelu(self, x: Value) -> Value:
        """Return x * Φ(x) with the exact error function, not the tanh approximation."""
        ...

    def reshape(self, x: Value, shape: Sequence[int]) -> Value:
        """Reshape; -1 is inferred."""
        ...

    def gather(self, x: Value, index: Value, axis: int) -> Value:
        """Select by a constant index."""
        ...

    def split(self, x: Value, parts: int, axis: int) -> list[Value]:
        """Cut into equal parts."""
        ...

    def slice(self, x: Value, start: int, stop: int, axis: int) -> Value:
        """x[start:stop] along one axis."""
        ...

    def concat(self, parts: Sequence[Value], axis: int) -> Value:
        """Join along one axis."""
        ...

    def rotary(self, x: Value, cos: Value, sin: Value, num_heads: int) -> Value:
        """Rotate [B, S, heads*D] by position s; cos and sin are [S, D/2], halves paired."""
        ...

    def attention(self, query: Value, key: Value, value: Value, num_heads: int) -> Value:
        """Bidirectional softmax attention over [B, S, heads*D]."""
        ...

    def cached_attention(
        self, qkv: Value, layer: int, num_heads: int, num_kv_heads: int, head_dim: int
    ) -> Value:
        """Causal grouped-query attention of k new positions over a KV cache updated in place.

        `qkv` is [1, k, (heads + 2 kv_heads) * D]; queries and keys are rotated by the graph's
        cos/sin tables at their sequence positions. Returns [1, k, heads*D].
        """
        ...
