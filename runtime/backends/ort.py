"""ONNX Runtime on the CPU: the embedded default, on any machine."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from autovla_rt.bundle import Bundle
from autovla_rt.config import KV_TYPES, SPARE_POSITIONS, LanguageGeometry
from autovla_rt.onnx_runtime import ort
from autovla_rt.ort_session import open_session
from autovla_rt.prefix import Prefix
from autovla_rt.runtime.backends import Float, Pending
from autovla_rt.runtime.backends.cached_language import CachedLanguage, prefix_of

ROW_MULTIPLE = 2
"""Rows of a quantized engine's passes are padded to a multiple of this, by repeating the last one.

A single row takes other kernels (matrix-vector, single-query attention) and so does, with AVX-512,
the last row of an odd number. They round differently, which in a quantized engine flips integers
and moves final hidden states by 0.3 %. Even numbers of rows agree bit for bit, on AVX2 and on
AVX-512 VNNI. A pass of one token costs about 1.4 times as much. Positions beyond the capacity
(`SPARE_POSITIONS`) are room for a pass that ends at the last one.
"""


class OrtVision:
    """The vision tower: one graph, and in memory one copy of the weights, per grid."""

    def __init__(self, bundle: Bundle, threads: int | None = None) -> None:
        grids = {camera.grid[1:] for camera in bundle.manifest.cameras}
        self._sessions = {
            (rows, columns): open_session(bundle.path(f"vision_{rows}x{columns}.onnx"), threads)
            for rows, columns in sorted(grids)
        }

    def encode(self, patches: Float, grid: tuple[int, int]) -> Float:
        """Encode [B, rows*columns, patch_width] patches of one (rows, columns) grid."""
        (features,) = self._sessions[grid].run(["features"], {"patches": patches})
        result: Float = features
        return result


class OrtLanguage(CachedLanguage):
    """The language model with its KV cache, updated in place by GroupQueryAttention.

    Args:
        bundle: The engine.
        threads: Of ONNX Runtime; None takes every core.
        use_prefix: Fill the cache with the bundle's prefix.
    """

    def __init__(
        self, bundle: Bundle, threads: int | None = None, *, use_prefix: bool = True
    ) -> None:
        prefix = prefix_of(bundle, use_prefix)
        super().__init__(bundle, prefix)
        manifest = bundle.manifest
        self._row_multiple = 1 if manifest.precision.language_formats == {"fp32"} else ROW_MULTIPLE
        self._head = open_session(bundle.path("text_head.onnx"), threads)
        self._session = open_session(bundle.path("language.onnx"), threads)
        self._binding = self._session.io_binding()
        self._lengths = np.zeros(1, np.int32), np.zeros(1, np.int32)
        self._bound = self._bind_constants(
            manifest.geometry.language, manifest.precision.kv, prefix
        )

    def _bind_constants(
        self, geometry: LanguageGeometry, kv: str, prefix: Prefix | None
    ) -> list[ort.OrtValue]:
        """Bind rotary tables and the cache once; past and present share one buffer."""
        values = []
        for name, table in self._tables.items():
            value = ort.OrtValue.ortvalue_from_numpy(table)
            self._binding.bind_ortvalue_input(f"{name}_cache", value)
            values.append(value)
        positions = self._capacity + SPARE_POSITIONS
        shape = (1, geometry.num_key_value_heads, positions, geometry.head_dim)
        for layer in range(geometry.num_hidden_layers):
            for part in ("key", "value"):
                cache = np.zeros(shape, KV_TYPES[kv])
                if prefix is not None:
                    cache[0, :, : prefix.length] = prefix.tensor(part, layer)
                value = ort.OrtValue.ortvalue_from_numpy(cache)
                self._binding.bind_ortvalue_input(f"past_key_values.{layer}.{part}", value)
                self._binding.bind_ortvalue_output(f"present.{layer}.{part}", value)
                values.append(value)
        return values

    def _padding(self, count: int) -> int:
        return -count % self._row_multiple

    def _pass(self, embeddings: Float, rows: NDArray[np.int64]) -> Pending:
        hidden = np.empty((len(rows), embeddings.shape[1]), np.float32)
        seqlens, total_length = self._lengths
        total_length[0] = self._length + embeddings.shape[0]
        seqlens[0] = total_length[0] - 1
        self._binding.bind_cpu_input("embeddings", embeddings)
        self._binding.bind_cpu_input("rows", rows)
        self._binding.bind_cpu_input("seqlens_k", seqlens)
        self._binding.bind_cpu_input("total_sequence_length", total_length)
        self._binding.bind_output("hidden", "cpu", 0, np.float32, hidden.shape, hidden.ctypes.data)
        self._session.run_with_iobinding(self._binding)
        return lambda: hidden

    def _text_logits(self, hidden: Float) -> Float:
        (text,) = self._head.run(["logits"], {"hidden": np.ascontiguousarray(hidden)})
        logits: Float = text
        return logits
