"""What a device engine needs of a device: memory that stays, and compiled graphs bound to it.

Two implementations: ONNX Runtime on this machine's CPU (onnx_executor.py) and TensorRT on a GPU
(tensorrt.py). Everything else of a device engine is written once, above these (device_engine.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from numpy.typing import NDArray

Shape = tuple[int, ...]


class Buffer(Protocol):
    """Memory of the device, allocated once; graphs are bound to it by its address."""

    def write(self, array: NDArray[Any]) -> None:
        """Copy an array, at most as large as the buffer, to its beginning."""
        ...

    def read(self, shape: Shape) -> NDArray[Any]:
        """Return what lies at its beginning, copied, once all work on it is done."""
        ...


class Executor(Protocol):
    """A compiled graph."""

    def bind(self, name: str, buffer: Buffer, shape: Shape) -> None:
        """Use a buffer's beginning for an input or output, in this shape, until it is bound anew.

        The executor keeps the buffer.
        """
        ...

    def run(self) -> None:
        """Compute; every input and output is bound."""
        ...


class Device(Protocol):
    """Where graphs are run."""

    def allocate(self, shape: Shape, dtype: str) -> Buffer:
        """Return zeroed memory for an array; `dtype` is NumPy's name."""
        ...

    def open(self, graph: Path) -> Executor:
        """Load a bundle's graph.

        Raises:
            BundleError: it cannot be loaded on this device.
        """
        ...


def fits(sizes: Sequence[int], count: int, room: int) -> int:
    """Return the least of ascending `sizes` that is `count` or more, at most `room`.

    `count` itself where no size is so large.
    """
    return min(next((size for size in sizes if size >= count), count), room)
