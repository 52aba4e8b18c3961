"""The `ort` dialect: ONNX Runtime's fused contrib operators, on any CPU.

GroupQueryAttention updates the KV cache in place when past and present are bound to one buffer,
rotates queries and keys itself and is causal inside the k new positions.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import numpy as np

from autovla_rt.config import KV_TYPES
from autovla_rt.export.graph.dialect import Dialect, Formats
from autovla_rt.export.graph.eager import kv_names
from autovla_rt.export.graph.ops import Value
from autovla_rt.export.graph.ort_linear import CONTRIB, LINEARS, ContribOps, Linear
from autovla_rt.export.quantize import INT8_MAX
from autovla_rt.export.weight_file import WeightFile
from autovla_rt.export.weight_source import WeightSource

OPSET, CONTRIB_VERSION, IR_VERSION = 20, 1, 10
KV_TYPE_NAMES = ("k_quant_type", "v_quant_type")
POSITION_INPUTS = ("seqlens_k", "total_sequence_length", "cos_cache", "sin_cache")


class OrtOps(ContribOps):
    """Collects nodes for one graph of ONNX Runtime's operators."""

    opsets: ClassVar[Mapping[str, int]] = {"": OPSET, CONTRIB: CONTRIB_VERSION}
    ir_version = IR_VERSION

    def __init__(self, source: WeightSource, weights: WeightFile, formats: Formats) -> None:
        super().__init__(source, weights, formats)
        self._linears: dict[str, Linear] = {}

    def linear(self, x: Value, *modules: str, bias: bool) -> Value:
        """[M, K] -> [M, N] in the first module's format."""
        name = self._formats.of(modules[0])
        if name not in self._linears:
            self._linears[name] = LINEARS[name](self._formats.int4_block)
        return self._linears[name].lower(self, x, modules, bias)

    def rms_norm(self, x: Value, weight: str, epsilon: float) -> Value:
        """Return x / rms(x) * weight over the last axis."""
        (y,) = self.node(
            "SimplifiedLayerNormalization", [x, self.weight(weight)], axis=-1, epsilon=epsilon
        )
        return y

    def add_rms_norm(
        self, x: Value, delta: Value, weight: str, epsilon: float
    ) -> tuple[Value, Value]:
        """Return (x + delta, rms_norm(x + delta)) in one pass over memory."""
        operator = "SkipSimplifiedLayerNormalization"
        normed, total = self._names(operator, 2)
        inputs = [x, delta, self.weight(weight)]
        self._append(CONTRIB, operator, inputs, [normed, "", "", total], {"epsilon": epsilon})
        return total, normed

    def silu_mul(self, gate: Value, up: Value) -> Value:
        """silu(gate) * up."""
        (activated,) = self.contrib("QuickGelu", [gate], alpha=1.0)
        return self.node("Mul", [activated, up])[0]

    def gelu(self, x: Value) -> Value:
        """Return x * Φ(x), exact."""
        return self.contrib("Gelu", [x])[0]

    def rotary(self, x: Value, cos: Value, sin: Value, num_heads: int) -> Value:
        """Rotate [B, S, heads*D] by position s."""
        inputs = [x, self.integers(0), cos, sin]
        return self.contrib("RotaryEmbedding", inputs, num_heads=num_heads)[0]

    def attention(self, query: Value, key: Value, value: Value, num_heads: int) -> Value:
        """Bidirectional softmax attention over [B, S, heads*D]."""
        return self.contrib("MultiHeadAttention", [query, key, value], num_heads=num_heads)[0]

    def cached_attention(
        self, qkv: Value, layer: int, num_heads: int, num_kv_heads: int, head_dim: int
    ) -> Value:
        """Causal grouped-query attention over layer `layer`'s cache, rotated by the tables."""
        if layer == 0:
            self._declare_positions(head_dim)
        cache: list[int | str] = [1, num_kv_heads, "capacity", head_dim]
        dtype = KV_TYPES[self._formats.kv]
        past, present = [], []
        for part in ("key", "value"):
            past.append(self.input(f"past_key_values.{layer}.{part}", dtype, cache))
            present.append(f"present.{layer}.{part}")
            self._declare_output(present[-1], dtype, cache)
        operator = "GroupQueryAttention"
        (attended,) = self._names(operator, 1)
        attributes: dict[str, int | str] = {
            "num_heads": num_heads,
            "kv_num_heads": num_kv_heads,
            "do_rotary": 1,
        }
        inputs = [qkv, "", "", *past, *POSITION_INPUTS]
        if self._formats.kv == "int8":
            inputs += ["", "", "", *self._kv_scales(layer, (1, num_kv_heads, 1, head_dim))]
            attributes["kv_cache_bit_width"] = 8
            attributes |= dict.fromkeys(KV_TYPE_NAMES, "PER_CHANNEL")
        self._append(CONTRIB, operator, inputs, [attended, *present], attributes)
        return attended

    def _kv_scales(self, layer: int, shape: tuple[int, ...]) -> list[Value]:
        """Make the scale of every channel of a layer's keys and values: static, so exact."""
        if self._formats.ranges is None:
            raise ValueError("keys and values in int8 need the ranges of a calibration")
        scales = []
        for name, largest in zip(
            kv_names(layer), self._formats.ranges.largest_kv(layer), strict=True
        ):
            scale = np.maximum(largest, np.finfo(np.float32).tiny) / np.float32(INT8_MAX)
            scales.append(self.constant(f"{name}.scale", scale.reshape(shape)))
        return scales

    def _declare_positions(self, head_dim: int) -> None:
        """Declare the inputs that all layers share: lengths of the sequence, rotary tables."""
        seqlens, total, cos, sin = POSITION_INPUTS
        for name in (seqlens, total):
            self.input(name, "int32", [1])
        for name in (cos, sin):
            self.input(name, "float32", ["capacity", head_dim // 2])


DIALECT = Dialect(
    OrtOps,
    suffix=".onnx",
    keeps_weights=True,
    libraries=("onnx", "onnxruntime"),
    formats=tuple(LINEARS),
    kv=("auto", "int8"),
)
