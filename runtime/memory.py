"""Whether an engine fits into this machine's memory, told before it is loaded."""

from __future__ import annotations

from autovla_rt.bundle import Bundle
from autovla_rt.errors import MemoryShortageError
from autovla_rt.machine import free_memory

WORKING_BYTES = 300 << 20
"""Libraries and what activations take beside the weights' share."""

GRAPH_WEIGHTS = ".bin"
KV_BYTES = {"auto": 4, "int8": 1}
"""Of a number in the KV cache; with bfloat16, which not every CPU has, it is 2 and not 4."""

PEAK = 1.3
"""Bytes at the peak for a byte of weights (measured: bench/README.md)."""


def needed_memory(bundle: Bundle) -> int:
    """Estimate the most bytes of memory that an engine takes while it loads and runs.

    Weights are in memory once, in the order that suits the CPU. Embeddings are read row by row and
    do not count.
    """
    manifest = bundle.manifest
    sizes = {name: record.size for name, record in manifest.files.items()}
    weights = sum(size for name, size in sizes.items() if name.endswith(GRAPH_WEIGHTS))
    heads = sum(size for name, size in sizes.items() if name.endswith("head.safetensors"))
    row = manifest.geometry.language.kept_numbers
    return (
        int(PEAK * weights)
        + heads
        + row * manifest.kv_capacity * KV_BYTES[manifest.precision.kv]
        + WORKING_BYTES
    )


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
