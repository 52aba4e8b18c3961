"""What a device engine needs of a device: memory that stays, and compiled graphs bound to it.

Two implementations: ONNX Runtime on this machine's CPU (onnx_executor.py) and TensorRT on a GPU
(tensorrt.py). Everything else of a device engine is written once, above these (device_engine.py).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from autovla_rt.bundle import Manifest
from autovla_rt.config import Camera
from autovla_rt.runtime.backends import Float

Shape = tuple[int, ...]
Levels = NDArray[np.uint8]

ActionHead = Callable[[Float], Float]
"""Final states [m, H] -> logits of the actions [m, N]."""


Fetched = Callable[[], NDArray[Any]]
"""Waits for an array that is being computed and copied, and returns it."""


class Buffer(Protocol):
    """Memory that the host writes or reads in every pass, allocated once."""

    def write(self, array: NDArray[Any]) -> None:
        """Copy an array, at most as large as the buffer, to its beginning, in its own type."""
        ...

    def read(self, shape: Shape) -> NDArray[Any]:
        """Return what lies at its beginning, copied, once all work on it is done."""
        ...

    def fetch(self, shape: Shape) -> Fetched:
        """Return what waits for all work put so far, and returns what lies at its beginning then.

        Of several only the latest may be called.
        """
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


class FramePatches(Protocol):
    """Makes a camera's frames the patches that the vision tower reads."""

    def __call__(self, frames: Sequence[Levels], patches: Any) -> None:
        """Resize RGB frames [H, W, 3] of one size; write their patches to a buffer's beginning.

        See `kernels.patchify`. Every two frames are a temporal patch.
        """
        ...


class Device(Protocol):
    """Where graphs are run: one queue of work, which is done in its order."""

    def beside(self) -> Self:
        """Return the same device with another queue, whose work may be done beside this one's."""
        ...

    def allocate(self, shape: Shape, dtype: str) -> Buffer:
        """Return zeroed memory to be exchanged with the host; `dtype` is NumPy's name."""
        ...

    def keep(self, array: NDArray[Any]) -> Any:
        """Return memory of the device's own with an array in it."""
        ...

    def action_head(self, weight: Float) -> ActionHead:
        """Return what multiplies final states [m, H] by the rows of the actions [N, H]."""
        ...

    def frame_patches(self, camera: Camera, manifest: Manifest) -> FramePatches:
        """Return what makes a camera's frames patches of its grid."""
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
