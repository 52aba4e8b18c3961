"""Keys and values of a prompt's prefix, by a language model in the `ort` dialect."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from autovla_rt.config import KV_TYPES, LanguageGeometry, Precision
from autovla_rt.onnx_runtime import ort
from autovla_rt.ort_session import open_session
from autovla_rt.prefix import States

Float = NDArray[np.float32]

LAYER_END = "SkipSimplifiedLayerNormalization"
"""Every layer has two of these nodes; its own ends with the second."""
LAYER_FILE = "prefix_layer.onnx"


def prefix_layers(
    folder: Path,
    geometry: LanguageGeometry,
    precision: Precision,
    embeddings: Float,
    tables: Mapping[str, Float],
) -> Iterator[tuple[States, States]]:
    """Yield every layer's keys and values [kv_heads, n, head_dim].

    Args:
        folder: Holds language.onnx and its weights.
        geometry: Of the language model.
        precision: Of the engine.
        embeddings: [n, hidden].
        tables: "cos" and "sin" [n, head_dim / 2].
    """
    run = _LayerRun(
        (1, geometry.num_key_value_heads, len(embeddings), geometry.head_dim),
        KV_TYPES[precision.kv],
        {f"{name}_cache": table for name, table in tables.items()},
    )
    states = {"embeddings": embeddings}
    for graph in layer_graphs(folder / "language.onnx"):
        path = folder / LAYER_FILE
        try:
            path.write_bytes(graph.model.SerializeToString())
            states, pair = run(path, graph, states)
        finally:
            path.unlink(missing_ok=True)
        yield pair


@dataclass(frozen=True)
class LayerGraph:
    """One layer as a model of its own.

    Attributes:
        model: Refers to the same weight file.
        index: Of the layer.
        outputs: Names of the states [k, hidden] that the next one reads.
    """

    model: onnx.ModelProto
    index: int
    outputs: tuple[str, ...]


def layer_graphs(path: Path) -> Iterator[LayerGraph]:
    """Cut a language model in the `ort` dialect into its layers."""
    whole = onnx.load(str(path), load_external_data=False)
    graph = whole.graph
    stored = {tensor.name: tensor for tensor in graph.initializer}
    declared = {value.name: value for value in graph.input}
    ends = [i for i, node in enumerate(graph.node) if node.op_type == LAYER_END][1::2]
    width = declared["embeddings"].type.tensor_type.shape.dim[1].dim_value
    reads: tuple[str, ...] = ("embeddings",)
    for index, (start, end) in enumerate(zip([0, *(e + 1 for e in ends)], ends, strict=False)):
        nodes = list(graph.node[start : end + 1])
        used = {name for node in nodes for name in node.input if name}
        writes = tuple(name for name in nodes[-1].output if name)
        presents = [value for value in graph.output if value.name.startswith(f"present.{index}.")]
        part = helper.make_graph(
            nodes,
            f"layer_{index}",
            [
                *(_state(name, width) for name in reads),
                *(value for name, value in declared.items() if name in used and name not in reads),
            ],
            [*(_state(name, width) for name in writes), *presents],
            [tensor for name, tensor in stored.items() if name in used],
        )
        model = helper.make_model(
            part, opset_imports=list(whole.opset_import), ir_version=whole.ir_version
        )
        yield LayerGraph(model, index, writes)
        reads = writes


def _state(name: str, width: int) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, ["k", width])


class _LayerRun:
    """Runs layers on the same positions."""

    def __init__(
        self, cache_shape: tuple[int, ...], cache_type: str, tables: dict[str, Float]
    ) -> None:
        self._shape, self._type = cache_shape, cache_type
        self._tables = tables

    def __call__(
        self, path: Path, graph: LayerGraph, states: dict[str, Float]
    ) -> tuple[dict[str, Float], tuple[States, States]]:
        """Return the states behind the layer, and its keys and values [kv_heads, k, head_dim]."""
        session = open_session(path, None)
        binding = session.io_binding()
        count = self._shape[2]
        given = {
            **states,
            **self._tables,
            "rows": np.arange(count),
            "seqlens_k": np.array([count - 1], np.int32),
            "total_sequence_length": np.array([count], np.int32),
        }
        names = {value.name for value in session.get_inputs()}
        for name, array in given.items():
            if name in names:
                binding.bind_cpu_input(name, array)
        cache = {}
        for part in ("key", "value"):
            cache[part] = ort.OrtValue.ortvalue_from_numpy(np.zeros(self._shape, self._type))
            binding.bind_ortvalue_input(f"past_key_values.{graph.index}.{part}", cache[part])
            binding.bind_ortvalue_output(f"present.{graph.index}.{part}", cache[part])
        for name in graph.outputs:
            binding.bind_output(name)
        session.run_with_iobinding(binding)
        states_after = binding.get_outputs()[len(cache) :]  # in the order in which they were bound
        after = {
            n: value.numpy().copy() for n, value in zip(graph.outputs, states_after, strict=True)
        }
        key, value = (cache[part].numpy()[0].copy() for part in ("key", "value"))
        return after, (key, value)
