"""ONNX Runtime on the CPU: the embedded default, on any machine."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file
from threadpoolctl import threadpool_limits

from autovla_rt.bundle import Bundle
from autovla_rt.config import SPARE_POSITIONS
from autovla_rt.errors import BundleError, CapacityError
from autovla_rt.kernels.action_head import action_logits
from autovla_rt.onnx_runtime import ort
from autovla_rt.ort_session import open_session
from autovla_rt.prefix import PREFIX_FILE, Prefix, read_prefix
from autovla_rt.runtime.backends import Float

ROW_MULTIPLE = 2
"""Rows of a quantized engine's passes are padded to a multiple of this, by repeating the last one.

A single row takes other kernels (matrix-vector, single-query attention) and so does, with AVX-512,
the last row of an odd number. They round differently, which in a quantized engine flips integers
and moves final hidden states by 0.3 %. Even numbers of rows agree bit for bit, on AVX2 and on
AVX-512 VNNI. A pass of one token costs about 1.4 times as much. One position more than the capacity
(`SPARE_POSITIONS`) is room for a pass that ends at the last one.
"""


def keep_blas_to_one_thread() -> None:
    """Let NumPy compute with one thread from now on, in the whole process.

    ONNX Runtime's threads and those of NumPy's BLAS (the action head's) wait for work by spinning,
    each on the cores of the other: two processes of one thread each planned four times as fast
    with this, one process of two threads 1.7 times.
    """
    threadpool_limits(1, user_api="blas")


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


class OrtLanguage:
    """The language model with its KV cache, updated in place by GroupQueryAttention.

    Args:
        bundle: The engine.
        threads: Of ONNX Runtime; None takes every core.
        use_prefix: Fill the cache with the bundle's prefix.
    """

    def __init__(
        self, bundle: Bundle, threads: int | None = None, *, use_prefix: bool = True
    ) -> None:
        keep_blas_to_one_thread()
        manifest = bundle.manifest
        self._capacity = manifest.kv_capacity
        self._row_multiple = 1 if manifest.precision.language == "fp32" else ROW_MULTIPLE
        self._embeddings = np.asarray(np.load(bundle.path("embeddings.npy"), mmap_mode="r"))
        self._action_weight = load_file(bundle.path("action_head.safetensors"))["weight"]
        choice = load_file(bundle.path("choice_head.safetensors"))
        self._choice_weight, self._choice_ids = choice["weight"], tuple(choice["ids"].tolist())
        self._head = open_session(bundle.path("text_head.onnx"), threads)
        self._session = open_session(bundle.path("language.onnx"), threads)
        self._binding = self._session.io_binding()
        self._lengths = np.zeros(1, np.int32), np.zeros(1, np.int32)
        prefix = read_prefix(bundle) if use_prefix and PREFIX_FILE in manifest.files else None
        self._prefix_length = self._length = 0 if prefix is None else prefix.length
        self._bound = self._bind_constants(
            bundle, manifest.geometry.language.num_hidden_layers, prefix
        )

    def _bind_constants(
        self, bundle: Bundle, layers: int, prefix: Prefix | None
    ) -> list[ort.OrtValue]:
        """Bind rotary tables and the cache once; past and present share one buffer."""
        geometry = bundle.manifest.geometry.language
        tables = load_file(bundle.path("rotary.safetensors"))
        values = []
        for name in ("cos", "sin"):
            value = ort.OrtValue.ortvalue_from_numpy(tables[name])
            self._binding.bind_ortvalue_input(f"{name}_cache", value)
            values.append(value)
        positions = self._capacity + SPARE_POSITIONS
        shape = (1, geometry.num_key_value_heads, positions, geometry.head_dim)
        for layer in range(layers):
            for part in ("key", "value"):
                cache = np.zeros(shape, np.float32)
                if prefix is not None:
                    cache[0, :, : prefix.length] = prefix.tensor(part, layer)
                value = ort.OrtValue.ortvalue_from_numpy(cache)
                self._binding.bind_ortvalue_input(f"past_key_values.{layer}.{part}", value)
                self._binding.bind_ortvalue_output(f"present.{layer}.{part}", value)
                values.append(value)
        return values

    @property
    def capacity(self) -> int:
        """Positions that the KV cache holds."""
        return self._capacity

    @property
    def length(self) -> int:
        """Positions filled so far."""
        return self._length

    @property
    def prefix_length(self) -> int:
        """Positions that were filled when the engine was loaded, and stay."""
        return self._prefix_length

    def embed(self, token_ids: NDArray[np.int64]) -> Float:
        """Look up [k] token ids; only their rows are read from the mapped table."""
        rows: Float = self._embeddings[token_ids].astype(np.float32)
        return rows

    def extend(self, embeddings: Float, last: int | None = None) -> Float:
        """Append [k, hidden] embeddings in one pass; returns the `last` ones' final states."""
        count = embeddings.shape[0]
        rows = np.arange(0 if last is None else count - last, count)
        total = self._length + count
        if total > self._capacity:
            raise CapacityError(
                f"the sequence needs {total} positions, the engine's KV cache holds "
                f"{self._capacity}. Build with a larger --kv-capacity."
            )
        hidden = self._pass(
            np.ascontiguousarray(self._padded(embeddings), np.float32), self._padded(rows)
        )
        self._length = total
        return hidden[: len(rows)]

    def _padded(self, rows: NDArray[Any]) -> NDArray[Any]:
        """Repeat the last row up to a multiple of `ROW_MULTIPLE`."""
        padding = -len(rows) % self._row_multiple
        return np.concatenate([rows, np.repeat(rows[-1:], padding, axis=0)]) if padding else rows

    def _pass(self, embeddings: Float, rows: NDArray[np.int64]) -> Float:
        """Run the graph on [k, hidden]; what it writes beyond `length` is overwritten later."""
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
        return hidden

    def truncate(self, length: int) -> None:
        """Forget all positions from `length` on."""
        if not self._prefix_length <= length <= self._length:
            raise ValueError(
                f"cannot truncate {self._length} positions, {self._prefix_length} of them the "
                f"prompt's constant prefix, to {length}"
            )
        self._length = length

    def logits(self, hidden: Float) -> Float:
        """Full vocabulary: the text head's rows, then the action head's."""
        (text,) = self._head.run(["logits"], {"hidden": np.ascontiguousarray(hidden)})
        return np.concatenate([text, self.action_logits(hidden)], axis=1)

    def choice_logits(self, hidden: Float, token_ids: tuple[int, int]) -> Float:
        """The fast and the slow answer's token, in float32 at every precision."""
        if token_ids != self._choice_ids:
            raise BundleError(
                f"choice_head.safetensors: expected the rows of the tokens {token_ids}, with which "
                f"the answers of recipe.json differ first, got those of {self._choice_ids}.\n"
                "Build the bundle again: files of two builds or versions were mixed."
            )
        return action_logits(hidden, self._choice_weight)

    def action_logits(self, hidden: Float) -> Float:
        """The action rows, in float32 at every precision."""
        return action_logits(hidden, self._action_weight)
