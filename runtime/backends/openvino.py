"""OpenVINO on an x86 CPU."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from autovla_rt.bundle import Bundle
from autovla_rt.config import SPARE_POSITIONS
from autovla_rt.machine import AMX, this_machine
from autovla_rt.openvino_model import (
    BLOCK,
    CACHES,
    OpenVinoModel,
    pass_inputs,
    put_kv_cache,
)
from autovla_rt.runtime.backends import Float, Pending
from autovla_rt.runtime.backends.cached_language import CachedLanguage, prefix_of

ROWS, ROWS_AMX = 2, 5
"""Fewest rows of a pass, and on a CPU with AMX; shorter ones are padded by repeating the last row.

Fewer take other kernels, which round differently; any number from these on agrees bit for bit, in
float32, int8 and int4.
"""


class OpenVinoVision:
    """The vision tower: one model, and in memory one copy of the weights, per grid.

    OpenVINO brings the weights into its own order in the first pass, so that one takes longer.
    """

    def __init__(self, bundle: Bundle, threads: int | None = None) -> None:
        precision = bundle.manifest.precision
        self._models: dict[tuple[int, int], OpenVinoModel] = {}
        for rows, columns in sorted({camera.grid[1:] for camera in bundle.manifest.cameras}):
            model = OpenVinoModel(bundle.path(f"vision_{rows}x{columns}.xml"))
            model.compile(threads, precision, precision.vision_formats)
            self._models[rows, columns] = model

    def encode(self, patches: Float, grid: tuple[int, int]) -> Float:
        """Encode [B, rows*columns, patch_width] patches of one (rows, columns) grid."""
        return self._models[grid].run({"patches": patches}, "features")[0]


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
        prefix = prefix_of(bundle, use_prefix)
        super().__init__(bundle, prefix)
        self._least_rows = ROWS_AMX if AMX in this_machine().features else ROWS
        geometry, precision = bundle.manifest.geometry.language, bundle.manifest.precision
        self._head = OpenVinoModel(bundle.path("text_head.xml"))
        self._head.compile(threads, precision, precision.language_formats)
        self._model = OpenVinoModel(bundle.path("language.xml"))
        put_kv_cache(self._model, geometry, range(geometry.num_hidden_layers))
        self._model.compile(threads, precision, precision.language_formats)
        self._blocks = np.arange(-(-(self._capacity + SPARE_POSITIONS) // BLOCK), dtype=np.int32)
        nothing = np.zeros((geometry.num_key_value_heads, 0, geometry.head_dim), np.float32)
        for layer in range(geometry.num_hidden_layers):
            for name, part in zip(CACHES, ("key", "value"), strict=True):
                states = nothing if prefix is None else prefix.tensor(part, layer)
                self._model.keep_cache(f"{name}.{layer}", states, self._blocks.size)
        self._pass(np.zeros((self._least_rows, geometry.hidden_size), np.float32), np.arange(1))

    def _padding(self, count: int) -> int:
        return max(self._least_rows - count, 0)

    def _pass(self, embeddings: Float, rows: NDArray[np.int64]) -> Pending:
        start, count = self._length, len(embeddings)
        given: dict[str, NDArray[Any]] = {
            "embeddings": embeddings,
            "rows": rows,
            **{name: table[start : start + count] for name, table in self._tables.items()},
            **pass_inputs(start, count, self._blocks),
        }
        hidden = self._model.run(given, "hidden")[0]
        return lambda: hidden

    def _text_logits(self, hidden: Float) -> Float:
        return self._head.run({"hidden": np.ascontiguousarray(hidden)}, "logits")[0]
