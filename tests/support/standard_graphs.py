"""Graphs of the `standard` dialect in ONNX Runtime, node by node as they are written.

ONNX Runtime's rewriting is off: it would fuse Q/DQ into kernels that round in other places. Its CPU
kernels compute float16 in float32, so it is no evidence for float16's range.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray

from autovla_rt.config import LanguageGeometry

Float = NDArray[np.float32]

DTYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16}


def open_unrewritten(path: Path) -> ort.InferenceSession:
    """Open a graph on the CPU as it is."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def typed(array: Float, session: ort.InferenceSession) -> NDArray[np.floating[Any]]:
    """Return an array in the type of a graph's first input."""
    return array.astype(DTYPES[session.get_inputs()[0].type])


class StandardLanguage:
    """A language model with its cache, as on the device.

    Past and present are one buffer, or with `in_place` off two that change places in every pass.
    """

    def __init__(
        self,
        path: Path,
        geometry: LanguageGeometry,
        tables: tuple[Float, Float],
        capacity: int,
        *,
        in_place: bool = True,
    ) -> None:
        self._session = open_unrewritten(path)
        self._tables = tables
        self.length = 0
        shape = 1, geometry.num_key_value_heads, capacity, geometry.head_dim
        self.caches = {
            given.name: [
                ort.OrtValue.ortvalue_from_numpy(np.zeros(shape, DTYPES[given.type]))
                for _ in range(1 if in_place else 2)
            ]
            for given in self._session.get_inputs()
            if given.name.startswith("past_key_values")
        }

    def extend(self, embeddings: Float, last: int | None = None) -> Float:
        """Append embeddings [k, hidden]; returns the states of the `last` of them, or of all."""
        return self.observe(embeddings, last)["hidden"]

    def observe(self, embeddings: Float, last: int | None = None) -> dict[str, Float]:
        """Append embeddings [k, hidden]; returns all outputs but the cache."""
        count = len(embeddings)
        binding = self._session.io_binding()
        given = {
            "embeddings": embeddings,
            "rows": np.arange(count)[-(last or count) :],
            "positions": np.arange(self.length, self.length + count)[None],
            "write_indices": np.array([self.length]),
            "nonpad_kv_seqlen": np.array([self.length + count]),
            "cos_cache": self._tables[0],
            "sin_cache": self._tables[1],
        }
        for name, array in given.items():
            binding.bind_cpu_input(name, np.ascontiguousarray(array))
        for name, caches in self.caches.items():
            binding.bind_ortvalue_input(name, caches[0])
            binding.bind_ortvalue_output(name.replace("past_key_values", "present"), caches[-1])
            caches.reverse()
        names = [output.name for output in self._session.get_outputs()]
        asked = [name for name in names if not name.startswith("present.")]
        for name in asked:
            binding.bind_output(name, "cpu")
        self._session.run_with_iobinding(binding)
        self.length += count
        results = binding.get_outputs()[-len(asked) :]
        return {name: value.numpy() for name, value in zip(asked, results, strict=True)}


@dataclass(frozen=True)
class ObservedLayer:
    """Names of one linear layer's values in a graph.

    Attributes:
        modules: Whose weights are stacked in it.
        read: Its input before Q/DQ.
        rounded: Its input after Q/DQ, or the same.
        result: Its output.
        bias: Whether it adds one.
    """

    modules: tuple[str, ...]
    read: str
    rounded: str
    result: str
    bias: bool


def observe_layers(path: Path) -> tuple[Path, list[ObservedLayer]]:
    """Write the graph again, beside it, with the values of its linear layers as outputs."""
    model = onnx.load(path, load_external_data=False)
    makers = {name: node for node in model.graph.node for name in node.output}
    layers = []
    for node in (node for node in model.graph.node if node.op_type == "Gemm"):
        x, weights = node.input[:2]
        stored = makers[weights].input[0] if weights in makers else weights
        quantize = makers[makers[x].input[0]] if x in makers and _dequantizes(makers[x]) else None
        read = x if quantize is None else quantize.input[0]
        modules = tuple(stored.partition(".weight")[0].split("+"))
        layers.append(ObservedLayer(modules, read, x, node.output[0], len(node.input) > 2))
    shown = {name for layer in layers for name in (layer.read, layer.rounded, layer.result)}
    shown -= {value.name for value in (*model.graph.output, *model.graph.input)}
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in sorted(shown))
    observed = path.with_name(f"observed_{path.name}")
    onnx.save(model, observed)
    return observed, layers


def _dequantizes(node: onnx.NodeProto) -> bool:
    return bool(node.op_type == "DequantizeLinear")
