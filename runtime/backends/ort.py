"""ONNX Runtime on the CPU: the embedded default, on any machine."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from safetensors.numpy import load_file
from threadpoolctl import threadpool_limits

from autovla_rt.bundle import Bundle
from autovla_rt.config import SPARE_POSITIONS
from autovla_rt.errors import BundleError, CapacityError
from autovla_rt.kernels.action_head import action_logits
from autovla_rt.runtime.backends import Float

PROVIDER = "CPUExecutionProvider"
CPUINFO = Path("/proc/cpuinfo")

ROW_MULTIPLE = 2
"""Rows of a quantized engine's passes are padded to a multiple of this, by repeating the last one.

A single row takes other kernels (matrix-vector, single-query attention) and so does, with AVX-512,
the last row of an odd number. They round differently, which in a quantized engine flips integers
and moves final hidden states by 0.3 %. Even numbers of rows agree bit for bit, on AVX2 and on
AVX-512 VNNI. A pass of one token costs about 1.4 times as much. One position more than the capacity
(`SPARE_POSITIONS`) is room for a pass that ends at the last one.
"""


def int8_kernels_saturate(cpuinfo: str) -> bool:
    """Whether ONNX Runtime's uint8 x int8 kernels add products in 16 bits on this CPU.

    They do on x86 without VNNI: full-range operands come out up to 18 % wrong. `cpuinfo` is the
    text of /proc/cpuinfo; ARM lists "Features", not "flags".
    """
    flags = next((line for line in cpuinfo.splitlines() if line.startswith("flags")), "")
    return bool(flags) and "vnni" not in flags


def open_session(path: Path, threads: int | None) -> ort.InferenceSession:
    """Open a graph on the CPU provider, and on nothing else.

    Raises:
        BundleError: ONNX Runtime cannot load the graph or took another provider.
    """
    options = ort.SessionOptions()
    if threads is not None:
        options.intra_op_num_threads = threads
    if int8_kernels_saturate(CPUINFO.read_text() if CPUINFO.exists() else ""):
        # Compute in uint8 x uint8: exact, and there as fast. Never on a CPU with VNNI, which would
        # lose a factor of six.
        options.add_session_config_entry("session.x64quantprecision", "1")
    try:
        session = ort.InferenceSession(str(path), options, providers=[PROVIDER])
    except Exception as error:  # ONNX Runtime raises its own unrelated classes
        raise BundleError(
            f"{path}: ONNX Runtime {ort.__version__} cannot load the graph: {error}\n"
            "Build the bundle again, or install the version that `autovla-rt inspect` names."
        ) from error
    if session.get_providers() != [PROVIDER]:
        raise BundleError(
            f"{path}: expected provider {PROVIDER}, got {session.get_providers()}. "
            "Uninstall onnxruntime-gpu or use its own environment."
        )
    return session


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
    """The language model with its KV cache, updated in place by GroupQueryAttention."""

    def __init__(self, bundle: Bundle, threads: int | None = None) -> None:
        keep_blas_to_one_thread()
        manifest = bundle.manifest
        self._capacity = manifest.kv_capacity
        self._length = 0
        self._row_multiple = 1 if manifest.precision.language == "fp32" else ROW_MULTIPLE
        self._embeddings = np.load(bundle.path("embeddings.npy"), mmap_mode="r")
        self._action_weight = load_file(bundle.path("action_head.safetensors"))["weight"]
        self._head = open_session(bundle.path("text_head.onnx"), threads)
        self._session = open_session(bundle.path("language.onnx"), threads)
        self._binding = self._session.io_binding()
        self._lengths = np.zeros(1, np.int32), np.zeros(1, np.int32)
        self._bound = self._bind_constants(bundle, manifest.geometry.language.num_hidden_layers)

    def _bind_constants(self, bundle: Bundle, layers: int) -> list[ort.OrtValue]:
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
                value = ort.OrtValue.ortvalue_from_numpy(np.zeros(shape, np.float32))
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

    def embed(self, token_ids: NDArray[np.int64]) -> Float:
        """Look up [k] token ids; only their rows are read from the mapped table."""
        rows: Float = self._embeddings[token_ids].astype(np.float32)
        return rows

    def extend(self, embeddings: Float) -> Float:
        """Append [k, hidden] embeddings in one pass; returns their [k, hidden] final states."""
        count = embeddings.shape[0]
        total = self._length + count
        if total > self._capacity:
            raise CapacityError(
                f"the sequence needs {total} positions, the engine's KV cache holds "
                f"{self._capacity}. Build with a larger --kv-capacity."
            )
        if padding := -count % self._row_multiple:
            embeddings = np.concatenate([embeddings, np.repeat(embeddings[-1:], padding, axis=0)])
        hidden = self._pass(np.ascontiguousarray(embeddings, np.float32))
        self._length = total
        return hidden[:count]

    def _pass(self, embeddings: Float) -> Float:
        """Run the graph on [k, hidden]; what it writes beyond `length` is overwritten later."""
        hidden = np.empty_like(embeddings)
        seqlens, total_length = self._lengths
        total_length[0] = self._length + embeddings.shape[0]
        seqlens[0] = total_length[0] - 1
        self._binding.bind_cpu_input("embeddings", embeddings)
        self._binding.bind_cpu_input("seqlens_k", seqlens)
        self._binding.bind_cpu_input("total_sequence_length", total_length)
        self._binding.bind_output("hidden", "cpu", 0, np.float32, hidden.shape, hidden.ctypes.data)
        self._session.run_with_iobinding(self._binding)
        return hidden

    def truncate(self, length: int) -> None:
        """Forget all positions from `length` on."""
        if not 0 <= length <= self._length:
            raise ValueError(f"cannot truncate {self._length} positions to {length}")
        self._length = length

    def logits(self, hidden: Float) -> Float:
        """Full vocabulary: the text head's rows, then the action head's."""
        (text,) = self._head.run(["logits"], {"hidden": np.ascontiguousarray(hidden)})
        return np.concatenate([text, self.action_logits(hidden)], axis=1)

    def action_logits(self, hidden: Float) -> Float:
        """The action rows, in float32 at every precision."""
        return action_logits(hidden, self._action_weight)
