"""The operation vocabulary computed at once in NumPy, float32, for several samples side by side.

What the layers of a model see can be looked at on the way, as calibration does. Weights are read a
chunk at a time and serve all samples. A value is gone when nobody holds its name any more, so a
description runs in the memory of what it has at hand.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from autovla_rt.export.graph.float16 import INPUT, OUTPUT, ROTATED, SCORES, SUM
from autovla_rt.export.graph.ops import Value
from autovla_rt.export.weight_source import WeightSource, matrix_chunks, matrix_shape

Float = NDArray[np.float32]
Observer = Callable[[tuple[str, ...], Value, list[Float]], None]
"""Sees the modules of a linear layer, its input's name, and the input's rows [M, K] by sample;
likewise keys and values [M, kv_heads*D] (`kv_names`)."""

Measure = Callable[[str, Float], None]
"""Is told a value's name (`float16.py`) and the largest |x| of each of its channels [C]."""

_erf = np.frompyfunc(math.erf, 1, 1)


class Held(str):
    """A value's name that holds what it is in each sample; a constant has one array for all."""

    arrays: list[NDArray[Any]]


@dataclass(frozen=True)
class Branches:
    """Several continuations of one text, side by side in one sequence.

    Attributes:
        position: int64 [k], of each row in its own continuation.
        branch: int64 [k], 0 for the text that all continue; a row attends to rows before it of its
            own branch and of branch 0.
    """

    position: NDArray[np.int64]
    branch: NDArray[np.int64]

    @classmethod
    def of(cls, common: int, lengths: Sequence[int]) -> Branches:
        """Return the layout of a text of `common` rows and its continuations."""
        counts = np.arange(common), *(common + np.arange(length) for length in lengths)
        branches = np.repeat(np.arange(1 + len(lengths)), [common, *lengths])
        return cls(np.concatenate(counts), branches)

    def hidden(self) -> NDArray[np.bool_]:
        """Whether a row [k] must not attend to another [k]."""
        same = (self.branch == 0) | (self.branch == self.branch[:, None])
        seen: NDArray[np.bool_] = np.tri(len(self.branch), dtype=bool) & same
        return ~seen


class Rounding(Protocol):
    """What a number format makes of what linear layers read."""

    def weights(self, modules: tuple[str, ...], rows: Float) -> Float:
        """Round [n, K] weights."""
        ...

    def inputs(self, modules: tuple[str, ...], rows: Float) -> Float:
        """Round [M, K] inputs."""
        ...


class Unrounded:
    """Leaves all as it is."""

    def weights(self, _modules: tuple[str, ...], rows: Float) -> Float:
        """Return them."""
        return rows

    def inputs(self, _modules: tuple[str, ...], rows: Float) -> Float:
        """Return them."""
        return rows


UNROUNDED = Unrounded()


def kv_names(layer: int) -> tuple[str, str]:
    """Return the names under which a layer's keys, rotated, and values are observed."""
    attention = f"model.layers.{layer}.self_attn"
    return f"{attention}.keys", f"{attention}.values"


def ignore(*_seen: object) -> None:
    """Observe and measure nothing."""


class EagerOps:
    """Computes what it is asked for.

    Args:
        source: The checkpoint.
        tables: Rotary cos and sin [n, head_dim/2] of the language model; none for a vision tower.
        layouts: Of the language model's samples; without, each is one text.
        observe: Is shown the input of every linear layer.
        rounding: Of what linear layers read.
        measure: Is told how large values are.
    """

    def __init__(
        self,
        source: WeightSource,
        tables: tuple[Float, Float] | None = None,
        layouts: Sequence[Branches] | None = None,
        observe: Observer = ignore,
        rounding: Rounding = UNROUNDED,
        measure: Measure = ignore,
    ) -> None:
        self._source, self._observe, self._rounding = source, observe, rounding
        self._tables, self._layouts, self._measure = tables, layouts, measure
        self._latest = ""
        """The linear layer that attention's values go by."""
        self._count = 0

    def hold(self, arrays: Sequence[NDArray[np.generic]]) -> Held:
        """Name a value that is given, by sample."""
        held = Held(f"value_{self._count}")
        held.arrays = list(arrays)
        self._count += 1
        return held

    def constant(self, _name: str, array: NDArray[np.generic]) -> Value:
        """Make a constant."""
        return self.hold([array])

    def linear(self, x: Value, *modules: str, bias: bool) -> Value:
        """[M, K] -> [M, N], all samples in one product for each chunk of weights."""
        rows = arrays_of(x)
        self._observe(modules, x, rows)
        stacked = self._rounding.inputs(modules, np.concatenate(rows))
        self._measure(f"{modules[0]}.{INPUT}", largest_of(stacked))
        y = np.empty((len(stacked), matrix_shape(self._source, modules)[0]), np.float32)
        start = 0
        for chunk in matrix_chunks(self._source, modules):
            weights = self._rounding.weights(modules, chunk)
            np.matmul(stacked, weights.T, out=y[:, start : start + len(chunk)])
            start += len(chunk)
        if bias:
            y += np.concatenate([self._vector(f"{module}.bias") for module in modules])
        counts = [self._source.shape(f"{module}.weight")[0] for module in modules]
        parts = np.split(largest_of(y), np.cumsum(counts)[:-1])
        for module, largest in zip(modules, parts, strict=True):
            self._measure(f"{module}.{OUTPUT}", largest)
        self._latest = modules[0]
        ends = np.cumsum([len(part) for part in rows])[:-1]
        return self.hold(np.split(y, ends))

    def rms_norm(self, x: Value, weight: str, epsilon: float) -> Value:
        """Return x / rms(x) * weight over the last axis."""
        scale = self._vector(weight)
        return self.hold([_rms(part, epsilon) * scale for part in arrays_of(x)])

    def add_rms_norm(
        self, x: Value, delta: Value, weight: str, epsilon: float
    ) -> tuple[Value, Value]:
        """Return (x + delta, rms_norm(x + delta))."""
        total = self.hold([a + b for a, b in zip(arrays_of(x), arrays_of(delta), strict=True)])
        for part in arrays_of(total):
            self._measure(f"{weight.removesuffix('.weight')}.{SUM}", largest_of(part))
        return total, self.rms_norm(total, weight, epsilon)

    def silu_mul(self, gate: Value, up: Value) -> Value:
        """silu(gate) * up."""
        pairs = zip(arrays_of(gate), arrays_of(up), strict=True)
        return self.hold([a / (1 + np.exp(-a)) * b for a, b in pairs])

    def gelu(self, x: Value) -> Value:
        """Return x * Φ(x), exact."""
        half = np.float32(math.sqrt(0.5))
        return self.hold([a * (_erf(a * half).astype(np.float32) + 1) / 2 for a in arrays_of(x)])

    def reshape(self, x: Value, shape: Sequence[int]) -> Value:
        """Reshape; -1 is inferred."""
        return self.hold([part.reshape(shape) for part in arrays_of(x)])

    def gather(self, x: Value, index: Value, axis: int) -> Value:
        """Select by an index that is constant, or one of each sample's own."""
        indices = _arrays(index) * (len(_arrays(x)) if len(_arrays(index)) == 1 else 1)
        pairs = zip(arrays_of(x), indices, strict=True)
        return self.hold([np.take(part, of, axis=axis) for part, of in pairs])

    def split(self, x: Value, parts: int, axis: int) -> list[Value]:
        """Cut into equal parts."""
        cut = [np.split(part, parts, axis=axis) for part in arrays_of(x)]
        return [self.hold(of) for of in zip(*cut, strict=True)]

    def slice(self, x: Value, start: int, stop: int, axis: int) -> Value:
        """x[start:stop] along one axis."""
        return self.hold([part.take(range(start, stop), axis=axis) for part in arrays_of(x)])

    def concat(self, parts: Sequence[Value], axis: int) -> Value:
        """Join along one axis."""
        by_sample = zip(*(arrays_of(part) for part in parts), strict=True)
        return self.hold([np.concatenate(of, axis=axis) for of in by_sample])

    def rotary(self, x: Value, cos: Value, sin: Value, num_heads: int) -> Value:
        """Rotate [B, S, heads*D] by position s."""
        (cosines,), (sines,) = arrays_of(cos), arrays_of(sin)
        turned = [_rotated(part, cosines, sines, num_heads) for part in arrays_of(x)]
        for part in turned:
            self._measure(f"{self._latest}.{ROTATED}", largest_of(part))
        return self.hold(turned)

    def attention(self, query: Value, key: Value, value: Value, num_heads: int) -> Value:
        """Bidirectional softmax attention over [B, S, heads*D]."""
        samples = zip(arrays_of(query), arrays_of(key), arrays_of(value), strict=True)
        return self.hold([self._attended(*of, num_heads, num_heads, None) for of in samples])

    def cached_attention(
        self, qkv: Value, layer: int, num_heads: int, num_kv_heads: int, head_dim: int
    ) -> Value:
        """Causal grouped-query attention of positions from the first one on; nothing is cached."""
        if self._tables is None:
            raise ValueError("a language model needs its rotary tables")
        ends = [num_heads * head_dim, (num_heads + num_kv_heads) * head_dim]
        parts = arrays_of(qkv)
        layouts = self._layouts or [Branches.of(part.shape[1], ()) for part in parts]
        attended, keys, values = [], [], []
        for part, layout in zip(parts, layouts, strict=True):
            query, key, value = np.split(part, ends, axis=2)
            cos, sin = (table[layout.position] for table in self._tables)
            query = _rotated(query, cos, sin, num_heads)
            key = _rotated(key, cos, sin, num_kv_heads)
            keys.append(key[0])
            values.append(value[0])
            hidden = layout.hidden()
            both = np.concatenate([query, key], axis=2)
            self._measure(f"{self._latest}.{ROTATED}", largest_of(both))
            attended.append(self._attended(query, key, value, num_heads, num_kv_heads, hidden))
        for name, kept in zip(kv_names(layer), (keys, values), strict=True):
            self._observe((name,), self.hold(kept), kept)
        return self.hold(attended)

    def input(self, name: str, _dtype: str, _shape: Sequence[int | str]) -> Value:
        """Refuse: what a whole model reads is given to its parts by `hold`."""
        raise NotImplementedError(f"{name}: hold values and describe a part of the model")

    def output(self, _value: Value, name: str, _dtype: str, _shape: Sequence[int | str]) -> None:
        """Refuse, as `input`."""
        raise NotImplementedError(f"{name}: describe a part of the model and look at its value")

    def _attended(self, query: Float, key: Float, value: Float, *of: Any) -> Float:
        attended, largest = _attention(query, key, value, *of)
        self._measure(f"{self._latest}.{SCORES}", largest)
        return attended

    def _vector(self, name: str) -> Float:
        return self._source.rows(name, 0, self._source.shape(name)[0])


def _arrays(value: Value) -> list[NDArray[Any]]:
    assert isinstance(value, Held)
    return value.arrays


def arrays_of(value: Value) -> list[Float]:
    """Return what a value is in each sample."""
    return _arrays(value)


def largest_of(x: Float) -> Float:
    """[..., C] -> [C] the largest |x| of each channel."""
    rows = x.reshape(-1, x.shape[-1])
    largest: Float = np.maximum(rows.max(axis=0), -rows.min(axis=0))
    return largest


def _rms(x: Float, epsilon: float) -> Float:
    square = np.einsum("...k,...k->...", x, x)[..., None] / np.float32(x.shape[-1])
    normed: Float = x / np.sqrt(square + np.float32(epsilon))
    return normed


def _rotated(x: Float, cos: Float, sin: Float, num_heads: int) -> Float:
    """Rotate [B, S, heads*D], whose heads' halves are paired, by [S, D/2] tables."""
    batch, length, width = x.shape
    first, second = np.moveaxis(x.reshape(batch, length, num_heads, 2, -1), 3, 0)
    cos, sin = cos[:, None], sin[:, None]
    turned = np.stack([first * cos - second * sin, second * cos + first * sin], axis=3)
    return turned.reshape(batch, length, width)


def _attention(
    query: Float,
    key: Float,
    value: Float,
    num_heads: int,
    num_kv_heads: int,
    hidden: NDArray[np.bool_] | None,
) -> tuple[Float, Float]:
    """Softmax attention of [B, S, heads*D] to [B, S, kv_heads*D], each of which serves a group.

    `hidden` [S, S] says which rows a row does not attend to. Also returns the largest |score| [1],
    of hidden ones too, which kernels may compute.
    """
    batch, length, width = query.shape
    size, group = width // num_heads, num_heads // num_kv_heads

    def heads(x: Float, count: int) -> Float:
        return x.reshape(batch, length, count, size).transpose(0, 2, 1, 3)

    grouped = heads(query, num_heads).reshape(batch, num_kv_heads, group * length, size)
    products = grouped @ heads(key, num_kv_heads).transpose(0, 1, 3, 2)
    scores: Float = products.reshape(batch, num_kv_heads, group, length, length)
    scores *= np.float32(size**-0.5)
    largest = largest_of(scores.reshape(-1, 1))
    if hidden is not None:
        scores[..., hidden] = -np.inf
    scores -= scores.max(axis=-1, keepdims=True)
    np.exp(scores, out=scores)
    scores /= scores.sum(axis=-1, keepdims=True)
    weights = scores.reshape(batch, num_kv_heads, group * length, length)
    attended: Float = weights @ heads(value, num_kv_heads)
    by_head = attended.reshape(batch, num_heads, length, size)
    return by_head.transpose(0, 2, 1, 3).reshape(batch, length, width), largest
