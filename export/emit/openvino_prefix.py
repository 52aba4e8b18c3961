"""Keys and values of a prompt's prefix, by a language model in the `openvino` dialect."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autovla_rt.config import LanguageGeometry, Precision
from autovla_rt.openvino_library import ov
from autovla_rt.openvino_model import (
    ATTENDED,
    BLOCK,
    CACHES,
    SUM,
    OpenVinoModel,
    pass_inputs,
    put_kv_cache,
    read_positions,
)

Float = NDArray[np.float32]


def prefix_layers(
    folder: Path,
    geometry: LanguageGeometry,
    precision: Precision,
    embeddings: Float,
    tables: Mapping[str, Float],
) -> Iterator[tuple[Float, Float]]:
    """Yield every layer's keys and values [kv_heads, n, head_dim].

    Args:
        folder: Holds language.xml and its weights.
        geometry: Of the language model.
        precision: Of its weights.
        embeddings: [n, hidden].
        tables: "cos" and "sin" [n, head_dim / 2].
    """
    path, count = folder / "language.xml", len(embeddings)
    blocks = np.arange(-(-count // BLOCK), dtype=np.int32)
    nothing = np.zeros((geometry.num_key_value_heads, 0, geometry.head_dim), np.float32)
    states = embeddings
    for index in range(geometry.num_hidden_layers):
        model = OpenVinoModel(path)
        model.model = _layer(model.model, geometry, index)
        put_kv_cache(model, geometry, [index])
        model.compile(None, precision, precision.language_formats)
        caches = [model.keep_cache(f"{name}.{index}", nothing, blocks.size) for name in CACHES]
        given = {**tables, **pass_inputs(0, count, blocks), _boundary(geometry, index): states}
        (states,) = model.run(given, _boundary(geometry, index + 1))
        key, value = (read_positions(cache, count) for cache in caches)
        yield key, value


def _layer(model: Any, geometry: LanguageGeometry, index: int) -> Any:
    """Cut one layer out of a language model."""
    nodes = {node.get_friendly_name(): node for node in model.get_ops()}
    given = [model.input(name).get_node() for name in ("cos", "sin")]
    result = ov.opset15.result(nodes[_boundary(geometry, index + 1)].output(0))
    result.output(0).set_names({_boundary(geometry, index + 1)})
    name = _boundary(geometry, index)
    if index == 0:
        given.append(model.input(name).get_node())
    else:
        old = nodes[name]
        parameter = ov.opset15.parameter(old.get_output_partial_shape(0), np.float32, name)
        old.output(0).replace(parameter.output(0))
        parameter.output(0).set_names({name})
        given.append(parameter)
    return ov.Model([result], given, f"layer_{index}")


def _boundary(geometry: LanguageGeometry, index: int) -> str:
    """Name the states that layer `index` reads; behind the last one, what its attention makes.

    They are sums, which stay in float32 whatever is computed between them.
    """
    if index == 0:
        return "embeddings"
    if index == geometry.num_hidden_layers:
        return f"{ATTENDED}.{index - 1}"
    return f"model.layers.{index}.input_layernorm.weight{SUM}"
