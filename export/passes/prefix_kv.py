"""The keys and values of the constant prompt prefix, computed when the engine is built (exact).

Every request's prompt begins with the same text, up to the first camera. Its keys and values depend
on nothing that comes later (attention is causal), so they ship in the bundle: at the 3B model's
chain-of-thought prompt 377 of 1,209 positions need no prefill.

They are computed by the graph that was just written, a layer at a time, so that no more than one
layer of the model is in memory. They are equal bit for bit to what this machine's runtime would
compute; another CPU rounds some products otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper
from safetensors.numpy import load_file

from autovla_rt.config import CompiledPrompt, Geometry, Precision
from autovla_rt.onnx_runtime import ort
from autovla_rt.ort_session import open_session
from autovla_rt.prefix import PREFIX_FILE, prefix_length, write_prefix

Float = NDArray[np.float32]

LAYER_END = "SkipSimplifiedLayerNormalization"
"""Every layer has two of these nodes; its own ends with the second."""
LAYER_FILE = "prefix_layer.onnx"


def emit_prefix_kv(
    folder: Path,
    geometry: Geometry,
    prompt: CompiledPrompt,
    precision: Precision,
    advance: Callable[[int], None],
) -> None:
    """Write the prefix of the language model that lies in `folder`.

    `advance` is called with 1 after every layer.
    """
    count = prefix_length(prompt)
    if count == 0:
        return
    ids = np.array(prompt.prefix_ids[:count], np.int64)
    table = np.load(folder / "embeddings.npy", mmap_mode="r")
    tables = load_file(folder / "rotary.safetensors")
    language = geometry.language
    run = _LayerRun(
        (1, language.num_key_value_heads, count, language.head_dim),
        {f"{name}_cache": np.ascontiguousarray(tables[name][:count]) for name in ("cos", "sin")},
    )
    states = {"embeddings": table[ids].astype(np.float32)}
    cache = []
    for graph in layer_graphs(folder / "language.onnx"):
        path = folder / LAYER_FILE
        try:
            path.write_bytes(graph.model.SerializeToString())
            states, pair = run(path, graph, states)
        finally:
            path.unlink(missing_ok=True)
        cache.append(pair)
        advance(1)
    write_prefix(folder / PREFIX_FILE, cache, prompt, precision)


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

    def __init__(self, cache_shape: tuple[int, ...], tables: dict[str, Float]) -> None:
        self._shape = cache_shape
        self._tables = tables

    def __call__(
        self, path: Path, graph: LayerGraph, states: dict[str, Float]
    ) -> tuple[dict[str, Float], tuple[Float, Float]]:
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
            cache[part] = ort.OrtValue.ortvalue_from_numpy(np.zeros(self._shape, np.float32))
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
