"""The keys and values of the constant prompt prefix, computed when the engine is built (exact).

Every request's prompt begins with the same text, up to the first camera. Its keys and values depend
on nothing that comes later (attention is causal), so they ship in the bundle: at the 3B model's
chain-of-thought prompt 377 of 1,209 positions need no prefill.

They are computed by the graph that was just written, a layer at a time, so that no more than one
layer of the model is in memory. They are equal bit for bit to what this machine's runtime would
compute; another CPU rounds some products otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from importlib import import_module
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file

from autovla_rt.config import CompiledPrompt, LanguageGeometry, Precision
from autovla_rt.prefix import PREFIX_FILE, States, prefix_length, write_prefix

Float = NDArray[np.float32]
PrefixLayers = Callable[
    [Path, LanguageGeometry, Precision, Float, Mapping[str, Float]],
    Iterator[tuple[States, States]],
]
"""A backend's way from a folder, embeddings and rotary tables to each layer's keys and values."""


def prefix_layers(backend: str) -> PrefixLayers:
    """Return how a backend computes a prefix; imports what runs models, which takes a while."""
    layers: PrefixLayers = import_module(f"autovla_rt.export.emit.{backend}_prefix").prefix_layers
    return layers


def emit_prefix_kv(
    folder: Path,
    geometry: LanguageGeometry,
    prompt: CompiledPrompt,
    precision: Precision,
    layers: PrefixLayers,
    advance: Callable[[int], None],
) -> None:
    """Write the prefix of the language model that lies in `folder`.

    `advance` is called with 1 after every layer.
    """
    count = prefix_length(prompt)
    if count == 0:
        return
    ids = np.array(prompt.prefix_ids[:count], np.int64)
    embeddings = np.load(folder / "embeddings.npy", mmap_mode="r")[ids].astype(np.float32)
    tables = load_file(folder / "rotary.safetensors")
    tables = {name: np.ascontiguousarray(table[:count]) for name, table in tables.items()}
    cache = []
    for pair in layers(folder, geometry, precision, embeddings, tables):
        cache.append(pair)
        advance(1)
    write_prefix(folder / PREFIX_FILE, cache, prompt, precision)
