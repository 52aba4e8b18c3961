"""OpenVINO models on the CPU, opened the same way by builds and by the runtime.

A language model is stored without its KV cache (`export.graph.openvino`): `with_kv_cache` puts in
PagedAttention, the operator of OpenVINO's own servers, which reads and writes keys and values in
place, in blocks that the caller holds. So a rollback is a smaller number, and nothing is copied
between passes.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autovla_rt.config import LanguageGeometry
from autovla_rt.errors import BundleError, DependencyError
from autovla_rt.openvino_library import ov

RELEASE = "2026.4"
"""The release whose PagedAttention this is; its inputs change from one to the next."""

QUERY, KEY, VALUE, ATTENDED = "query", "key", "value", "attended"
"""Names, before a dot and the layer's number, of the rows that a layer's attention reads and makes:
[k, heads * head_dim], rotated."""
SUM, NORMED = ".sum", ".normed"
"""Behind the name of a norm's weight: what it normalises, and the result."""

BLOCK = 32
"""Positions of a block of the KV cache, as the CPU plugin has them."""

QUANTIZED_GROUP = 128
"""Values of a row that share a scale when the plugin quantizes activations."""

POSITIONS = "past_lens"
ROWS_BEGIN = "subsequence_begins"
BLOCKS = "block_indices"
BLOCKS_BEGIN = "block_indices_begins"
LONGEST = "max_context_len"

CACHES = ("key_cache", "value_cache")

Float = NDArray[np.float32]


def read_model(path: Path) -> ov.Model:
    """Read a stored model; its weights stay in the file until it is compiled.

    Raises:
        DependencyError: another release of OpenVINO is installed.
        BundleError: the file is no model.
    """
    version = ov.__version__
    if not version.startswith(f"{RELEASE}."):
        raise DependencyError(
            f"expected OpenVINO {RELEASE}, got {version}: its attention operator changes from "
            f"release to release.\nInstall it: pip install 'openvino=={RELEASE}.*'"
        )
    try:
        return ov.Core().read_model(str(path))
    except RuntimeError as error:
        raise BundleError(
            f"{path}: OpenVINO {version} cannot read the model: {error}\nBuild the bundle again."
        ) from error


def with_kv_cache(model: ov.Model, geometry: LanguageGeometry, layers: Iterable[int]) -> ov.Model:
    """Replace the attention of a language model's layers by one over a KV cache.

    The model gets inputs more: those that say where the pass stands, and `key_cache.N` and
    `value_cache.N` of every layer, whose type and shape the compiled model tells.
    """
    inputs = {
        name: _parameter(name, shape)
        for name, shape in (
            (POSITIONS, [1]),
            (ROWS_BEGIN, [2]),
            (BLOCKS, [-1]),
            (BLOCKS_BEGIN, [2]),
            (LONGEST, []),
        )
    }
    parameters = list(inputs.values())
    nodes = {node.get_friendly_name(): node for node in model.get_ops()}
    for layer in layers:
        caches = [_parameter(f"{name}.{layer}", [-1] * 4, ov.Type.dynamic) for name in CACHES]
        parameters += caches
        read = [nodes[f"{name}.{layer}"] for name in (QUERY, KEY, VALUE)]
        attention = _paged_attention(read, caches, inputs, geometry)
        nodes[f"{ATTENDED}.{layer}"].output(0).replace(attention.output(0))
    return ov.Model(model.get_results(), [*model.get_parameters(), *parameters], model.get_name())


def compile_model(model: ov.Model, path: Path, threads: int | None) -> ov.CompiledModel:
    """Compile a model for the CPU; `path` is where it came from.

    Activations, keys and values are float32: what a row gives does not depend on what shares its
    pass (docs/architecture.md, "OpenVINO").

    Raises:
        BundleError: OpenVINO cannot.
    """
    settings: Mapping[str, Any] = {
        "INFERENCE_NUM_THREADS": threads or len(os.sched_getaffinity(0)),
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": 1,
        "INFERENCE_PRECISION_HINT": "f32",
        "KV_CACHE_PRECISION": "f32",
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": QUANTIZED_GROUP,
    }
    try:
        return ov.Core().compile_model(model, "CPU", dict(settings))
    except RuntimeError as error:
        raise BundleError(
            f"{path}: OpenVINO {ov.__version__} cannot compile the model: {error}\n"
            "Build the bundle again, or build one for --target cpu."
        ) from error


def pass_inputs(start: int, count: int, blocks: NDArray[np.int32]) -> dict[str, NDArray[np.int32]]:
    """Return the inputs that say where a pass of `count` positions from `start` on stands.

    `blocks` are those of the cache, in their order.
    """
    total = start + count
    used = blocks[: -(-total // BLOCK)]
    values = {
        POSITIONS: [start],
        ROWS_BEGIN: [0, count],
        BLOCKS_BEGIN: [0, used.size],
        LONGEST: total,
    }
    return {BLOCKS: used, **{name: np.array(value, np.int32) for name, value in values.items()}}


def write_positions(cache: Float, states: Float) -> None:
    """Write keys or values [kv_heads, n, head_dim] of the first positions into a cache."""
    heads, count, width = states.shape
    padded = np.zeros((heads, -(-count // BLOCK) * BLOCK, width), np.float32)
    padded[:, :count] = states
    blocks = padded.reshape(heads, -1, BLOCK, width).transpose(1, 0, 2, 3)
    cache[: len(blocks)] = blocks


def read_positions(cache: Float, count: int) -> Float:
    """Return the keys or values [kv_heads, count, head_dim] of a cache's first positions."""
    _, heads, _, width = cache.shape
    whole = cache.transpose(1, 0, 2, 3).reshape(heads, -1, width)
    return np.ascontiguousarray(whole[:, :count])


def _parameter(name: str, shape: list[int], element: ov.Type = ov.Type.i32) -> ov.Node:
    parameter = ov.opset15.parameter(ov.PartialShape(shape), element, name)
    parameter.output(0).set_names({name})
    return parameter


def _paged_attention(
    read: list[ov.Node],
    caches: list[ov.Node],
    inputs: Mapping[str, ov.Node],
    geometry: LanguageGeometry,
) -> ov.Node:
    """Make the operator, in the order of its 28 inputs; what is empty or 0 is not used."""

    def empty(dtype: type[np.generic], rank: int = 1) -> ov.Node:
        return ov.opset15.constant(np.zeros((0,) * rank, dtype))

    zero = ov.opset15.constant(np.int32(0))
    scale = ov.opset15.constant(np.float32(geometry.head_dim**-0.5))
    integers, floats = empty(np.int32), empty(np.float32)
    arguments = [
        *read,
        *caches,
        inputs[POSITIONS],
        inputs[ROWS_BEGIN],
        inputs[BLOCKS],
        inputs[BLOCKS_BEGIN],
        scale,
        zero,  # no sliding window
        floats,  # no ALiBi
        inputs[LONGEST],
        integers,  # no aggregated scores
        *(integers, integers, floats),  # no rotation of the cache
        *(floats, zero, zero),  # no sparse attention
        empty(np.float32, 4),  # no sinks
        *(zero, integers, integers, integers),  # no eviction
        integers,  # no token types
        *(empty(np.uint8), integers),  # no tree mask
    ]
    attention = ov.op._PagedAttentionExtension([node.output(0) for node in arguments])
    facts = attention.get_rt_info()
    for part in ("k", "v"):
        facts[f"num_{part}_heads"] = geometry.num_key_value_heads
        facts[f"{part}_head_size"] = geometry.head_dim
    return attention
