"""Keys and values of a prompt's prefix, by a language model in the `openvino` dialect."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from autovla_rt.config import LanguageGeometry
from autovla_rt.openvino_library import ov
from autovla_rt.openvino_model import (
    ATTENDED,
    BLOCK,
    CACHES,
    NORMED,
    SUM,
    compile_model,
    pass_inputs,
    read_model,
    read_positions,
    with_kv_cache,
)

Float = NDArray[np.float32]


def prefix_layers(
    folder: Path, geometry: LanguageGeometry, embeddings: Float, tables: Mapping[str, Float]
) -> Iterator[tuple[Float, Float]]:
    """Yield every layer's keys and values [kv_heads, n, head_dim].

    Args:
        folder: Holds language.xml and its weights.
        geometry: Of the language model.
        embeddings: [n, hidden].
        tables: "cos" and "sin" [n, head_dim / 2].
    """
    path, count = folder / "language.xml", len(embeddings)
    blocks = np.arange(-(-count // BLOCK), dtype=np.int32)
    shape = (blocks.size, geometry.num_key_value_heads, BLOCK, geometry.head_dim)
    states = {"embeddings": embeddings}
    for index in range(geometry.num_hidden_layers):
        layer = with_kv_cache(_layer(read_model(path), geometry, index), geometry, [index])
        request = compile_model(layer, path, None).create_infer_request()
        caches = [ov.Tensor(np.zeros(shape, np.float32)) for _ in CACHES]
        for name, cache in zip(CACHES, caches, strict=True):
            request.set_tensor(f"{name}.{index}", cache)
        for name, array in {**states, **tables, **pass_inputs(0, count, blocks)}.items():
            request.set_tensor(name, ov.Tensor(array))
        request.infer()
        names = _boundary(geometry, index + 1)
        states = {name: request.get_tensor(name).data.copy() for name in names}
        key, value = (read_positions(cache.data, count) for cache in caches)
        yield key, value


def _layer(model: ov.Model, geometry: LanguageGeometry, index: int) -> ov.Model:
    """Cut one layer out of a language model."""
    nodes = {node.get_friendly_name(): node for node in model.get_ops()}
    given = [model.input(name).get_node() for name in ("cos", "sin")]
    results = []
    for name in _boundary(geometry, index + 1):
        result = ov.opset15.result(nodes[name].output(0))
        result.output(0).set_names({name})
        results.append(result)
    for name in _boundary(geometry, index):
        if index == 0:
            given.append(model.input(name).get_node())
            continue
        old = nodes[name]
        parameter = ov.opset15.parameter(old.get_output_partial_shape(0), np.float32, name)
        old.output(0).replace(parameter.output(0))
        parameter.output(0).set_names({name})
        given.append(parameter)
    return ov.Model(results, given, f"layer_{index}")


def _boundary(geometry: LanguageGeometry, index: int) -> tuple[str, ...]:
    """Name the states that layer `index` reads; behind the last one, what its attention makes."""
    if index == 0:
        return ("embeddings",)
    if index == geometry.num_hidden_layers:
        return (f"{ATTENDED}.{index - 1}",)
    weight = f"model.layers.{index}.input_layernorm.weight"
    return (f"{weight}{SUM}", f"{weight}{NORMED}")
