"""OpenVINO on an x86 CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autovla_rt.bundle import Bundle
from autovla_rt.config import SPARE_POSITIONS
from autovla_rt.openvino_library import ov
from autovla_rt.openvino_model import (
    BLOCK,
    CACHES,
    compile_model,
    pass_inputs,
    read_model,
    with_kv_cache,
    write_positions,
)
from autovla_rt.runtime.backends import Float
from autovla_rt.runtime.backends.cached_language import CachedLanguage

ROWS = 2
"""Fewest rows of a pass; one is padded by repeating it.

A single row takes other kernels, which round differently; any number from two on agrees bit for
bit, in float32, int8 and int4.
"""


class OpenVinoVision:
    """The vision tower: one model, and in memory one copy of the weights, per grid."""

    def __init__(self, bundle: Bundle, threads: int | None = None) -> None:
        grids = {camera.grid[1:] for camera in bundle.manifest.cameras}
        self._requests = {
            (rows, columns): _open(bundle.path(f"vision_{rows}x{columns}.xml"), threads)
            for rows, columns in sorted(grids)
        }

    def encode(self, patches: Float, grid: tuple[int, int]) -> Float:
        """Encode [B, rows*columns, patch_width] patches of one (rows, columns) grid."""
        request = self._requests[grid]
        request.set_tensor("patches", _shared(patches))
        request.infer()
        features: Float = request.get_tensor("features").data.copy()
        return features


class OpenVinoLanguage(CachedLanguage):
    """The language model with its KV cache in blocks, written in place by PagedAttention.

    Args:
        bundle: The engine.
        threads: Of OpenVINO; None takes every core.
        use_prefix: Fill the cache with the bundle's prefix.
    """

    def __init__(
        self, bundle: Bundle, threads: int | None = None, *, use_prefix: bool = True
    ) -> None:
        super().__init__(bundle, use_prefix=use_prefix)
        geometry = bundle.manifest.geometry.language
        layers = geometry.num_hidden_layers
        path = bundle.path("language.xml")
        model = with_kv_cache(read_model(path), geometry, range(layers))
        self._request = compile_model(model, path, threads).create_infer_request()
        self._head = _open(bundle.path("text_head.xml"), threads)
        self._blocks = np.arange(-(-(self._capacity + SPARE_POSITIONS) // BLOCK), dtype=np.int32)
        shape = (self._blocks.size, geometry.num_key_value_heads, BLOCK, geometry.head_dim)
        for layer in range(layers):
            for name, part in zip(CACHES, ("key", "value"), strict=True):
                cache = np.zeros(shape, np.float32)
                if self._prefix is not None:
                    write_positions(cache, self._prefix.tensor(part, layer))
                # Given by value, so that OpenVINO holds it in memory of its own.
                self._request.set_tensor(f"{name}.{layer}", ov.Tensor(cache))

    def _padding(self, count: int) -> int:
        return max(ROWS - count, 0)

    def _pass(self, embeddings: Float, rows: NDArray[np.int64]) -> Float:
        count, start = len(embeddings), self._length
        given: dict[str, NDArray[Any]] = {
            "embeddings": embeddings,
            "rows": rows,
            **{name: table[start : start + count] for name, table in self._tables.items()},
            **pass_inputs(start, count, self._blocks),
        }
        for name, array in given.items():
            self._request.set_tensor(name, _shared(array))
        self._request.infer()
        hidden: Float = self._request.get_tensor("hidden").data.copy()
        return hidden

    def _text_logits(self, hidden: Float) -> Float:
        self._head.set_tensor("hidden", _shared(np.ascontiguousarray(hidden)))
        self._head.infer()
        logits: Float = self._head.get_tensor("logits").data.copy()
        return logits


def _open(path: Path, threads: int | None) -> ov.InferRequest:
    return compile_model(read_model(path), path, threads).create_infer_request()


def _shared(array: NDArray[Any]) -> ov.Tensor:
    """Hand an array over without copying it; the tensor keeps it alive."""
    return ov.Tensor(array, shared_memory=True)
