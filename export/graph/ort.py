"""The `ort` dialect: ONNX Runtime's fused contrib operators, on any CPU.

GroupQueryAttention updates the KV cache in place when past and present are bound to one buffer,
rotates queries and keys itself and is causal inside the k new positions.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from autovla_rt.config import KV_TYPES
from autovla_rt.export.graph.dialect import Dialect, Formats
from autovla_rt.export.graph.eager import kv_names
from autovla_rt.export.graph.ops import Value
from autovla_rt.export.graph.ort_linear import LINEARS, Linear, NodeSink
from autovla_rt.export.quantize import INT8_MAX
from autovla_rt.export.weight_file import ELEMENT_TYPES, WeightFile
from autovla_rt.export.weight_source import WeightSource

CONTRIB = "com.microsoft"
OPSET, CONTRIB_VERSION, IR_VERSION = 20, 1, 10
KV_TYPE_NAMES = ("k_quant_type", "v_quant_type")
POSITION_INPUTS = ("seqlens_k", "total_sequence_length", "cos_cache", "sin_cache")


class OrtOps(NodeSink):
    """Collects nodes for one graph; weights go to a WeightFile that several graphs may share."""

    def __init__(self, source: WeightSource, weights: WeightFile, formats: Formats) -> None:
        self._source = source
        self._weights = weights
        self._formats = formats
        self._linears: dict[str, Linear] = {}
        self._nodes: list[onnx.NodeProto] = []
        self._inputs: list[onnx.ValueInfoProto] = []
        self._outputs: list[onnx.ValueInfoProto] = []
        self._constants: dict[str, TensorProto] = {}
        self._external: set[str] = set()

    def node(
        self, operator: str, inputs: Sequence[Value], outputs: int = 1, **attributes: Any
    ) -> list[Value]:
        """Append one node of the standard domain."""
        return self._append("", operator, inputs, self._names(operator, outputs), attributes)

    def contrib(
        self, operator: str, inputs: Sequence[Value], outputs: int = 1, **attributes: Any
    ) -> list[Value]:
        """Append one node of ONNX Runtime's domain."""
        return self._append(CONTRIB, operator, inputs, self._names(operator, outputs), attributes)

    def _names(self, operator: str, count: int) -> list[Value]:
        return [f"{operator}_{len(self._nodes)}_{index}" for index in range(count)]

    def _append(
        self,
        domain: str,
        operator: str,
        inputs: Sequence[Value],
        outputs: list[Value],
        attributes: dict[str, Any],
    ) -> list[Value]:
        """Append a node with named outputs; an output named "" is left out."""
        name = f"{operator}_{len(self._nodes)}"
        self._nodes.append(
            helper.make_node(operator, list(inputs), outputs, name, domain=domain, **attributes)
        )
        return outputs

    def input(self, name: str, dtype: str, shape: Sequence[int | str]) -> Value:
        """Declare a graph input; a string names a dynamic dimension."""
        self._inputs.append(helper.make_tensor_value_info(name, ELEMENT_TYPES[dtype], list(shape)))
        return name

    def output(self, value: Value, name: str, dtype: str, shape: Sequence[int | str]) -> None:
        """Declare a graph output."""
        self._nodes.append(helper.make_node("Identity", [value], [name], f"output_{name}"))
        self._outputs.append(helper.make_tensor_value_info(name, ELEMENT_TYPES[dtype], list(shape)))

    def constant(self, name: str, array: NDArray[np.generic]) -> Value:
        """Make a small constant, kept inside the graph."""
        tensor = numpy_helper.from_array(np.ascontiguousarray(array), name)
        if self._constants.setdefault(name, tensor) != tensor:
            raise ValueError(f"two different constants are called {name}")
        return name

    def stored(self, name: str) -> Value:
        """Refer to a tensor of the weight file."""
        self._external.add(name)
        return name

    def weight(self, name: str) -> Value:
        """Store one small tensor of the checkpoint (a norm, a bias) as float32."""
        if name not in self._weights:
            array = self._source.rows(name, 0, self._source.shape(name)[0])
            self._weights.add(name, "float32", array.shape, [array])
        return self.stored(name)

    def bias(self, modules: Sequence[str]) -> Value:
        """Store the stacked biases of several modules."""
        name = "+".join(f"{module}.bias" for module in modules)
        if name not in self._weights:
            parts = [
                self._source.rows(f"{m}.bias", 0, self._source.shape(f"{m}.bias")[0])
                for m in modules
            ]
            self._weights.add(name, "float32", (sum(p.size for p in parts),), parts)
        return self.stored(name)

    @property
    def source(self) -> WeightSource:
        """Where weights are read from."""
        return self._source

    @property
    def weights(self) -> WeightFile:
        """Where weights are written to."""
        return self._weights

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

    def reshape(self, x: Value, shape: Sequence[int]) -> Value:
        """Reshape; -1 is inferred."""
        name = "shape_" + "_".join(str(size) for size in shape)
        return self.node("Reshape", [x, self.constant(name, np.array(shape, np.int64))])[0]

    def gather(self, x: Value, index: Value, axis: int) -> Value:
        """Select by a constant index."""
        return self.node("Gather", [x, index], axis=axis)[0]

    def split(self, x: Value, parts: int, axis: int) -> list[Value]:
        """Cut into equal parts."""
        return self.node("Split", [x], parts, axis=axis, num_outputs=parts)

    def slice(self, x: Value, start: int, stop: int, axis: int) -> Value:
        """x[start:stop] along one axis."""
        bounds = [
            self.constant(f"int_{bound}", np.array([bound], np.int64))
            for bound in (start, stop, axis)
        ]
        return self.node("Slice", [x, *bounds])[0]

    def concat(self, parts: Sequence[Value], axis: int) -> Value:
        """Join along one axis."""
        return self.node("Concat", parts, axis=axis)[0]

    def rotary(self, x: Value, cos: Value, sin: Value, num_heads: int) -> Value:
        """Rotate [B, S, heads*D] by position s."""
        offset = self.constant("int_0", np.array([0], np.int64))
        return self.contrib("RotaryEmbedding", [x, offset, cos, sin], num_heads=num_heads)[0]

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
            self._outputs.append(
                helper.make_tensor_value_info(present[-1], ELEMENT_TYPES[dtype], cache)
            )
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

    def save(self, path: Path, name: str) -> None:
        """Write the graph; it refers to the weight file by its name, so both share a folder."""
        initializers = [self._weights.proto(tensor) for tensor in sorted(self._external)]
        graph = helper.make_graph(
            self._nodes,
            name,
            self._inputs,
            self._outputs,
            [*self._constants.values(), *initializers],
        )
        opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(CONTRIB, CONTRIB_VERSION)]
        model = helper.make_model(
            graph, opset_imports=opsets, ir_version=IR_VERSION, producer_name="autovla-rt"
        )
        path.write_bytes(model.SerializeToString(deterministic=True))


DIALECT = Dialect(
    OrtOps,
    suffix=".onnx",
    keeps_weights=True,
    libraries=("onnx", "onnxruntime"),
)
