"""Keys and values of the prompt's constant prefix, as they lie in a bundle."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from autovla_rt.bundle import Bundle
from autovla_rt.config import KV_TYPES, CompiledPrompt, Precision
from autovla_rt.errors import BundleError

PREFIX_FILE = "prefix_kv.safetensors"
BINDING = "computed_for"
ROWS = 2
"""The prefix has a multiple of so many positions: see `ROW_MULTIPLE` of the `ort` backend."""

States = NDArray[np.generic]
"""Keys or values, in the type of `KV_TYPES`."""


class Prefix:
    """Keys and values of the first `length` positions of every request's prompt."""

    def __init__(self, tensors: Mapping[str, States], length: int) -> None:
        self._tensors = tensors
        self.length = length

    def tensor(self, part: str, layer: int) -> States:
        """Return the "key" (rotated) or "value" of a layer, [kv_heads, length, head_dim]."""
        return self._tensors[f"{part}.{layer}"]


def prefix_length(prompt: CompiledPrompt) -> int:
    """Return how many positions are the same in every request: those before the first camera."""
    first = min((video.start for video in prompt.videos), default=len(prompt.prefix_ids))
    return first - first % ROWS


def write_prefix(
    path: Path,
    layers: Sequence[tuple[States, States]],
    prompt: CompiledPrompt,
    precision: Precision,
) -> None:
    """Write the (key, value) of every layer, bound to the prompt and the precision."""
    tensors = {
        f"{part}.{layer}": np.ascontiguousarray(array)
        for layer, pair in enumerate(layers)
        for part, array in zip(("key", "value"), pair, strict=True)
    }
    path.write_bytes(save(tensors, {BINDING: _binding(prompt, precision)}))


def read_prefix(bundle: Bundle) -> Prefix:
    """Read a bundle's prefix.

    Raises:
        BundleError: it is damaged, or of another prompt, precision or geometry.
    """
    path, manifest = bundle.path(PREFIX_FILE), bundle.manifest
    prompt, language = bundle.prompt(), manifest.geometry.language
    wanted = _binding(prompt, manifest.precision)
    length = prefix_length(prompt)
    shape = (language.num_key_value_heads, length, language.head_dim)
    try:
        with safe_open(path, framework="numpy") as file:
            found = (file.metadata() or {}).get(BINDING)
            stored = list(file.keys())
            tensors: dict[str, Any] = {name: file.get_tensor(name) for name in stored}
    except (OSError, SafetensorError) as error:
        raise BundleError(f"{path}: cannot be read ({error}).\nBuild the bundle again.") from error
    if found != wanted:
        raise BundleError(
            f"{path}: expected the prefix of this engine ({wanted}), got one of {found}.\n"
            "Build the bundle again: files of two builds were mixed."
        )
    names = {f"{p}.{i}" for p in ("key", "value") for i in range(language.num_hidden_layers)}
    dtype = KV_TYPES[manifest.precision.kv]
    wrong = {n: t.shape for n, t in tensors.items() if t.shape != shape or t.dtype != dtype}
    if wrong or tensors.keys() != names:
        raise BundleError(
            f"{path}: expected {dtype} {list(shape)} for the key and value of "
            f"{language.num_hidden_layers} layers, got {wrong or sorted(tensors)}.\n"
            "Build the bundle again."
        )
    return Prefix(tensors, length)


def _binding(prompt: CompiledPrompt, precision: Precision) -> str:
    """Return what the keys and values were computed for."""
    ids = list(prompt.prefix_ids[: prefix_length(prompt)])
    digest = hashlib.sha256(json.dumps(ids).encode()).hexdigest()
    return f"prompt {digest[:16]}, precision {precision}"
