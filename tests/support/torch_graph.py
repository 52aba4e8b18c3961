"""Graphs of the `standard` and `plain` dialects in torch, node by node in the graph's own types.

float16 stays torch.half: every product and every element-wise result is rounded to it, and what is
beyond it becomes infinite, as on tensor cores; their sums are float32. ONNX Runtime's CPU kernels
compute float16 in float32 and would show neither. Needs torch, onnx and NumPy alone.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper

TYPES = {
    TensorProto.FLOAT: torch.float32,
    TensorProto.FLOAT16: torch.float16,
    TensorProto.INT64: torch.int64,
    TensorProto.INT8: torch.int8,
    TensorProto.INT4: torch.int8,
    TensorProto.FLOAT8E4M3FN: torch.float8_e4m3fn,
}
"""Types of tensors, and what they are here: an int4 code has a byte."""

CODES = {TensorProto.INT8: (-128, 127), TensorProto.INT4: (-8, 7)}

FUSED, ROUNDED = "fused", "rounded"
"""How attention in half is computed: scores in float32 and probabilities in half, as a fused kernel
does; or scaled queries and keys, scores and probabilities each rounded to half."""

Attributes = dict[str, Any]
Inputs = Sequence[torch.Tensor | None]


@dataclass
class Range:
    """What was seen of a tensor of floats.

    Attributes:
        dtype: Its type.
        largest: Its largest finite magnitude.
        overflowed: Whether a value was infinite or NaN.
    """

    dtype: torch.dtype
    largest: float = 0.0
    overflowed: bool = False

    def see(self, x: torch.Tensor) -> None:
        """Look at values."""
        finite = torch.isfinite(x)
        self.overflowed |= not bool(finite.all())
        magnitudes = torch.where(finite, x, torch.zeros_like(x)).abs()
        self.largest = max(self.largest, float(magnitudes.max()) if x.numel() else 0.0)


class StoredWeights:
    """The weights that lie beside a graph, read when a node asks for them."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def read(self, proto: TensorProto) -> torch.Tensor:
        """Return an external tensor."""
        where = {entry.key: entry.value for entry in proto.external_data}
        path, offset = self._folder / where["location"], int(where["offset"])
        data = np.fromfile(path, np.uint8, int(where["length"]), offset=offset)
        return _decoded(data, proto)


@dataclass(frozen=True)
class RandomWeights:
    """Values for a graph whose weight file is not there, the same for any float type.

    Norms lie around 1; everything else is normal, with a variance that keeps the size of what a
    layer reads. They have none of the outliers of trained weights.
    """

    seed: int = 0
    device: str = "cpu"

    def read(self, proto: TensorProto) -> torch.Tensor:
        """Return values for an external tensor of floats."""
        generator = torch.Generator(self.device)
        generator.manual_seed(self.seed ^ zlib.crc32(proto.name.encode()))
        values = torch.randn(tuple(proto.dims), generator=generator, device=self.device)
        if len(proto.dims) > 1:
            values /= math.sqrt(math.prod(proto.dims[1:]))
        else:
            values = 0.1 * values + (0.0 if proto.name.endswith("bias") else 1.0)
        return values.to(TYPES[proto.data_type])


class TorchGraph:
    """A graph that can be run.

    Args:
        path: The graph; its weights lie beside it.
        device: Where it is computed.
        attention: FUSED or ROUNDED.
        weights: What reads external tensors; else the files beside the graph.

    Attributes:
        ranges: By tensor, what was seen of every tensor of floats that a node made, in all runs.
    """

    def __init__(
        self,
        path: Path,
        device: str = "cpu",
        attention: str = FUSED,
        weights: StoredWeights | RandomWeights | None = None,
    ) -> None:
        graph = onnx.load(path, load_external_data=False).graph
        self._device, self._attention = device, attention
        self._weights = weights or StoredWeights(path.parent)
        self._constants = {of.name: of for of in graph.initializer}
        self._nodes = list(graph.node)
        self._outputs = [of.name for of in graph.output]
        last = {name: i for i, node in enumerate(self._nodes) for name in node.input}
        self._last = last | dict.fromkeys(self._outputs, len(self._nodes))
        self.inputs = {of.name: of.type.tensor_type for of in graph.input}
        self.ranges: dict[str, Range] = {}

    @torch.no_grad()
    def run(
        self, feeds: Mapping[str, np.ndarray | torch.Tensor], kept: Sequence[str] = ()
    ) -> dict[str, torch.Tensor]:
        """Return the outputs, and the tensors that are to be `kept`; no other is held.

        Raises:
            NotImplementedError: a node's operator is none that the dialect has.
        """
        values: dict[str, torch.Tensor] = {}
        for name, of in self.inputs.items():
            given = torch.as_tensor(feeds[name])
            values[name] = given.to(self._device, TYPES[of.elem_type])
        results = {}
        for index, node in enumerate(self._nodes):
            inputs = [self._value(values, name) if name else None for name in node.input]
            for name, result in zip(node.output, self._compute(node, inputs), strict=True):
                values[name] = result
                if result.is_floating_point() and result.element_size() > 1:
                    self.ranges.setdefault(name, Range(result.dtype)).see(result)
                if name in self._outputs or name in kept:
                    results[name] = result
            for name in {*node.input, *node.output}:
                if self._last.get(name, index) <= index:
                    values.pop(name, None)
        return results

    def overflowed(self) -> list[str]:
        """Return the tensors in which something became infinite or NaN, in the graph's order."""
        return [name for name, of in self.ranges.items() if of.overflowed]

    def _value(self, values: dict[str, torch.Tensor], name: str) -> torch.Tensor:
        if name in values:
            return values[name]
        proto = self._constants[name]
        if proto.data_location == TensorProto.EXTERNAL:
            return self._weights.read(proto).to(self._device)
        return torch.from_numpy(numpy_helper.to_array(proto).copy()).to(self._device)

    def _compute(self, node: onnx.NodeProto, inputs: Inputs) -> Sequence[torch.Tensor]:
        attributes = {of.name: helper.get_attribute_value(of) for of in node.attribute}
        if node.op_type == "Attention":
            attributes["rounded"] = self._attention == ROUNDED
        if node.domain or node.op_type not in OPERATORS:
            raise NotImplementedError(f"{node.name}: {node.domain or 'onnx'} {node.op_type}")
        result = OPERATORS[node.op_type](inputs, attributes)
        return [result] if isinstance(result, torch.Tensor) else result


def _decoded(data: np.ndarray, proto: TensorProto) -> torch.Tensor:
    """Return a tensor's values from its bytes."""
    if proto.data_type == TensorProto.INT4:
        nibbles = np.stack([data & 15, data >> 4], axis=-1).reshape(-1).astype(np.int8)
        return torch.from_numpy((nibbles ^ 8) - 8).reshape(tuple(proto.dims))
    return torch.from_numpy(data).view(TYPES[proto.data_type]).reshape(tuple(proto.dims))


def product(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """x @ y; in half it is rounded once, its sums are float32."""
    if x.dtype == torch.float16 and not x.is_cuda:
        return (x.float() @ y.float()).half()
    return x @ y


def _gemm(inputs: Inputs, attributes: Attributes) -> torch.Tensor:
    x, weights, *bias = inputs
    y = product(x, weights.T if attributes.get("transB") else weights)
    return y + bias[0] if bias else y


def _attention(inputs: Inputs, attributes: Attributes) -> torch.Tensor:
    """Softmax attention over [B, S, heads*D], or over [B, heads, S, D] up to a given length."""
    query, key, value = inputs[:3]
    length = inputs[6] if len(inputs) > 6 else None
    flat = query.dim() == 3
    if flat:
        counts = (attributes[f"{of}_num_heads"] for of in ("q", "kv", "kv"))
        query, key, value = (
            of.unflatten(2, (count, -1)).transpose(1, 2)
            for of, count in zip((query, key, value), counts, strict=True)
        )
    hidden = None
    if length is not None:
        total, new = int(length[0]), query.shape[2]
        key, value = key[:, :, :total], value[:, :, :total]
        if attributes.get("is_causal"):
            allowed = torch.ones(new, total, dtype=torch.bool, device=query.device)
            hidden = ~allowed.tril(total - new)
    group = query.shape[1] // key.shape[1]
    key, value = (of.repeat_interleave(group, dim=1) for of in (key, value))
    kind = query.dtype
    attended = (_rounded if attributes["rounded"] else _fused)(query, key, value, hidden).to(kind)
    return attended.transpose(1, 2).flatten(2) if flat else attended


def _fused(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, hidden: torch.Tensor | None
) -> torch.Tensor:
    scores = query.float() @ key.float().transpose(2, 3) / math.sqrt(query.shape[3])
    if hidden is not None:
        scores = scores.masked_fill(hidden, -torch.inf)
    weights = (scores - scores.amax(3, keepdim=True)).exp()
    return weights.to(query.dtype).float() @ value.float() / weights.sum(3, keepdim=True)


def _rounded(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, hidden: torch.Tensor | None
) -> torch.Tensor:
    scale = query.shape[3] ** -0.25
    scores = product(query * scale, (key * scale).transpose(2, 3))
    if hidden is not None:
        scores = scores.masked_fill(hidden, -torch.inf)
    return product(scores.softmax(3), value)


def _rotary(inputs: Inputs, attributes: Attributes) -> torch.Tensor:
    """Rotate [B, S, heads*D], whose heads' halves are paired, by [B, S, D/2]."""
    x, cos, sin = inputs
    first, second = x.unflatten(2, (attributes["num_heads"], 2, -1)).unbind(3)
    cos, sin = cos[:, :, None], sin[:, :, None]
    turned = [first * cos - second * sin, second * cos + first * sin]
    return torch.stack(turned, dim=3).flatten(2)


def _scatter(inputs: Inputs, attributes: Attributes) -> torch.Tensor:
    past, update, start = inputs
    present = past.clone()
    present.narrow(attributes["axis"], int(start[0]), update.shape[attributes["axis"]])[:] = update
    return present


def _quantize(inputs: Inputs, attributes: Attributes) -> torch.Tensor:
    x, scale = inputs
    kind = attributes["output_dtype"]
    scaled = x.float() / scale.float()
    if kind == TensorProto.FLOAT8E4M3FN:
        return scaled.clamp(-448, 448).to(torch.float8_e4m3fn)
    return scaled.round().clamp(*CODES[kind]).to(torch.int8)


def _dequantize(inputs: Inputs, attributes: Attributes) -> torch.Tensor:
    codes, scale = inputs
    if block := attributes.get("block_size"):
        scale = scale.repeat_interleave(block, dim=attributes["axis"])
    elif scale.dim():
        scale = scale[:, None]
    return codes.to(scale.dtype) * scale


def _slice(inputs: Inputs, _attributes: Attributes) -> torch.Tensor:
    x, start, stop, axis = inputs
    first, end = int(start[0]), min(int(stop[0]), x.shape[int(axis[0])])
    return x.narrow(int(axis[0]), first, end - first)


def _split(inputs: Inputs, attributes: Attributes) -> Iterator[torch.Tensor]:
    x, axis = inputs[0], attributes["axis"]
    count = attributes.get("num_outputs")
    sizes = [x.shape[axis] // count] * count if count else inputs[1].tolist()
    return iter(x.split(sizes, axis))


def _reshape(inputs: Inputs, _attributes: Attributes) -> torch.Tensor:
    x, shape = inputs
    return x.reshape([x.shape[i] if size == 0 else size for i, size in enumerate(shape.tolist())])


def _gather(inputs: Inputs, attributes: Attributes) -> torch.Tensor:
    x, index = inputs
    axis = attributes["axis"]
    shape = [*x.shape[:axis], *index.shape, *x.shape[axis + 1 :]]
    return x.index_select(axis, index.reshape(-1)).reshape(shape)


OPERATORS: dict[str, Callable[[Inputs, Attributes], Any]] = {
    "Add": lambda of, _: of[0] + of[1],
    "And": lambda of, _: of[0] & of[1],
    "Attention": _attention,
    "Cast": lambda of, to: of[0].to(TYPES[to["to"]]),
    "Concat": lambda of, to: torch.cat(list(of), to["axis"]),
    "DequantizeLinear": _dequantize,
    "Div": lambda of, _: of[0] / of[1],
    "Erf": lambda of, _: of[0].erf(),
    "Gather": _gather,
    "Gelu": lambda of, _: torch.nn.functional.gelu(of[0]),
    "Gemm": _gemm,
    "Greater": lambda of, _: of[0] > of[1],
    "GreaterOrEqual": lambda of, _: of[0] >= of[1],
    "Identity": lambda of, _: of[0],
    "Less": lambda of, _: of[0] < of[1],
    "MatMul": lambda of, _: product(of[0], of[1]),
    "Max": lambda of, _: torch.maximum(of[0], of[1]),
    "Min": lambda of, _: torch.minimum(of[0], of[1]),
    "Mul": lambda of, _: of[0] * of[1],
    "QuantizeLinear": _quantize,
    "ReduceMean": lambda of, to: of[0].mean(of[1].tolist(), keepdim=bool(to["keepdims"])),
    "Reshape": _reshape,
    "RotaryEmbedding": _rotary,
    "Sigmoid": lambda of, _: of[0].sigmoid(),
    "Slice": _slice,
    "Softmax": lambda of, to: of[0].softmax(to["axis"]),
    "Split": _split,
    "Sqrt": lambda of, _: of[0].sqrt(),
    "Sub": lambda of, _: of[0] - of[1],
    "TensorScatter": _scatter,
    "Transpose": lambda of, to: of[0].permute(to["perm"]),
    "Unsqueeze": lambda of, _: of[0].unsqueeze(int(of[1][0])),
    "Where": lambda of, _: torch.where(of[0], of[1], of[2]),
}
"""Every operator that the dialects write."""
