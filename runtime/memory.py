"""Whether an engine fits into this machine's memory, told before it is loaded."""

from __future__ import annotations

from autovla_rt.bundle import Bundle
from autovla_rt.errors import MemoryShortageError
from autovla_rt.machine import free_memory

WORKING_BYTES = 300 << 20
"""Libraries, activations of a 3B model's prefill and vision tower (measured: bench/README.md)."""

GRAPH_WEIGHTS = ".bin"
KV_BYTES = 4
"""Of a number in the KV cache; 2 with bfloat16, which not every CPU has."""

ORT_COPIES = 1.3
"""Bytes for a byte of weights, at the peak, in ONNX Runtime (measured: int4 1.3, int8 1.2)."""


def needed_memory(bundle: Bundle) -> int:
    """Estimate the most bytes of memory that an engine takes while it loads and runs.

    OpenVINO loads one file of weights after the other, each of which is there twice until it has
    been brought into an order that suits the CPU. Embeddings are read row by row and do not count.
    """
    manifest = bundle.manifest
    sizes = {name: record.size for name, record in manifest.files.items()}
    weights = [size for name, size in sizes.items() if name.endswith(GRAPH_WEIGHTS)]
    if manifest.backend == "openvino":
        loaded, peak = 0, 0
        for size in sorted(weights, reverse=True):
            peak = max(peak, loaded + 2 * size)
            loaded += size
    else:
        peak = int(ORT_COPIES * sum(weights))
    heads = sum(size for name, size in sizes.items() if name.endswith("head.safetensors"))
    language = manifest.geometry.language
    row = 2 * language.num_hidden_layers * language.num_key_value_heads * language.head_dim
    return peak + heads + row * manifest.kv_capacity * KV_BYTES + WORKING_BYTES


def require_memory(bundle: Bundle) -> None:
    """Refuse an engine that does not fit.

    Raises:
        MemoryShortageError: it needs more than is free; nothing was loaded.
    """
    free, needed = free_memory(), needed_memory(bundle)
    if free is not None and needed > free:
        raise MemoryShortageError(
            f"{bundle.folder}: expected about {needed / 2**30:.1f} GiB of free memory, got "
            f"{free / 2**30:.1f} GiB.\nEnd other programs, or build the engine with --precision "
            "int4 or a smaller --kv-capacity."
        )
