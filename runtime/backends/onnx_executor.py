"""A device engine's graphs in ONNX Runtime on the CPU, as they are written.

For checking what a GPU would be given, not for speed: nothing is fused, so that Q/DQ rounds where
the graph says. Products of float16 are computed in float32 there: no evidence for its range.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from autovla_rt.bundle import Manifest
from autovla_rt.config import Camera
from autovla_rt.kernels.action_head import action_logits
from autovla_rt.kernels.patchify import patchify
from autovla_rt.onnx_runtime import ort
from autovla_rt.ort_session import open_session
from autovla_rt.runtime.backends import Float
from autovla_rt.runtime.backends.executor import ActionHead, Fetched, Levels, Shape
from autovla_rt.runtime.frames import bicubic


class HostBuffer:
    """An array of the CPU's memory."""

    def __init__(self, shape: Shape, dtype: str) -> None:
        self.array = np.zeros(shape, dtype).reshape(-1)

    def write(self, array: NDArray[Any]) -> None:
        """Copy an array to the beginning."""
        self.array[: array.size] = array.reshape(-1)

    def read(self, shape: Shape) -> NDArray[Any]:
        """Return what lies at the beginning, copied."""
        return self.array[: prod(shape)].reshape(shape).copy()

    def fetch(self, shape: Shape) -> Fetched:
        """Return what does so: there is nothing to wait for."""
        return lambda: self.read(shape)


class HostPatches:
    """Resizes frames with Pillow and cuts them into patches: what the GPU's kernel does."""

    def __init__(self, camera: Camera, manifest: Manifest) -> None:
        self._preprocessing, self._vision = manifest.preprocessing, manifest.geometry.vision
        _, rows, columns = camera.grid
        self._size = columns * self._vision.patch_size, rows * self._vision.patch_size

    def __call__(self, frames: Sequence[Levels], patches: HostBuffer) -> None:
        """Write the patches of frames [H, W, 3]."""
        resized = [bicubic(Image.fromarray(frame), self._size) for frame in frames]
        patches.write(patchify(np.stack(resized), self._preprocessing, self._vision))


class OnnxExecutor:
    """A session whose inputs and outputs are bound by address."""

    def __init__(self, session: ort.InferenceSession) -> None:
        self._session = session
        self._binding = session.io_binding()
        self._inputs = {given.name for given in session.get_inputs()}
        self._bound: dict[str, HostBuffer] = {}  # by address: kept, so that they stay there

    def bind(self, name: str, memory: HostBuffer, shape: Shape) -> None:
        """Use the beginning of some memory for an input or output."""
        dtype, address = memory.array.dtype, memory.array.ctypes.data
        bind = self._binding.bind_input if name in self._inputs else self._binding.bind_output
        bind(name, "cpu", 0, dtype.type, shape, address)
        self._bound[name] = memory

    def run(self) -> None:
        """Compute."""
        self._session.run_with_iobinding(self._binding)


class OnnxDevice:
    """This machine's CPU."""

    def __init__(self, threads: int | None = None) -> None:
        self._threads = threads

    def beside(self) -> OnnxDevice:
        """Return this: one thing is done after the other."""
        return self

    def frame_patches(self, camera: Camera, manifest: Manifest) -> HostPatches:
        """Return what makes a camera's frames patches."""
        return HostPatches(camera, manifest)

    def allocate(self, shape: Shape, dtype: str) -> HostBuffer:
        """Return zeroed memory."""
        return HostBuffer(shape, dtype)

    def keep(self, array: NDArray[Any]) -> HostBuffer:
        """Return memory with an array in it."""
        buffer = HostBuffer(array.shape, array.dtype.name)
        buffer.write(array)
        return buffer

    def action_head(self, weight: Float) -> ActionHead:
        """Return NumPy's product."""
        return lambda hidden: action_logits(hidden, weight)

    def open(self, graph: Path) -> OnnxExecutor:
        """Load a graph without rewriting it.

        Raises:
            BundleError: ONNX Runtime cannot load it.
        """
        return OnnxExecutor(open_session(graph, self._threads, rewrite=False))
