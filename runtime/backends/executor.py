"""What a device engine needs of a device: memory that stays, and compiled graphs bound to it.

Two implementations: ONNX Runtime on this machine's CPU (onnx_executor.py) and TensorRT on a GPU
(tensorrt.py). Everything else of a device engine is written once, above these (device_engine.py).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from numpy.typing import NDArray

from autovla_rt.runtime.backends import Float

Shape = tuple[int, ...]

ActionHead = Callable[[Float], Float]
"""Final states [m, H] -> logits of the actions [m, N]."""


class Buffer(Protocol):
    """Memory that the host writes or reads in every pass, allocated once."""

    def write(self, array: NDArray[Any]) -> None:
        """Copy an array, at most as large as the buffer, to its beginning."""
        ...

    def read(self, shape: Shape) -> NDArray[Any]:
        """Return what lies at its beginning, copied, once all work on it is done."""
        ...


class Executor(Protocol):
    """A compiled graph."""

    def bind(self, name: str, memory: Any, shape: Shape) -> None:
        """Use the beginning of the device's memory for an input or output, until it is bound anew.

        The executor keeps it.
        """
        ...

    def run(self) -> None:
        """Compute; every input and output is bound."""
        ...


class Device(Protocol):
    """Where graphs are run."""

    def allocate(self, shape: Shape, dtype: str) -> Buffer:
        """Return zeroed memory to be exchanged with the host; `dtype` is NumPy's name."""
        ...

    def keep(self, array: NDArray[Any]) -> Any:
        """Return memory of the device's own with an array in it."""
        ...

    def action_head(self, weight: Float) -> ActionHead:
        """Return what multiplies final states [m, H] by the rows of the actions [N, H]."""
        ...

    def open(self, graph: Path) -> Executor:
        """Load a bundle's graph.

        Raises:
            BundleError: it cannot be loaded on this device.
        """
        ...


def fits(sizes: Sequence[int], count: int, room: int) -> int:
    """Return the least of ascending `sizes` that is `count` or more, at most `room`.

    `count` itself where no size is so large, or there is no room for more.
    """
    return max(min(next((size for size in sizes if size >= count), count), room), count)
