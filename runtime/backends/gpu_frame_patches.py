"""Frames to patches on an NVIDIA GPU: one launch of a compiled kernel for a camera's frames."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from autovla_rt.bundle import Manifest
from autovla_rt.config import Camera
from autovla_rt.kernels.resize_plan import ResizePlan, level_values, plan_resize
from autovla_rt.runtime.backends.cuda_device import CudaBuffer, CudaDevice, CudaMemory
from autovla_rt.runtime.backends.cuda_kernels import CudaKernels
from autovla_rt.runtime.backends.executor import Levels

KERNEL = "resize_patchify"

Size = tuple[int, int]
"""(height, width) in pixels."""

planned = lru_cache(maxsize=4)(plan_resize)
"""Cameras of one size have one plan."""


@dataclass(frozen=True)
class _Known:
    """What frames of one size need."""

    plan: ResizePlan
    tables: dict[str, CudaMemory]
    frames: CudaBuffer


class GpuFramePatches:
    """Resizes frames, normalises them and cuts them into patches in float16, on the GPU.

    A camera's frames have one size; where it changes, the tables of the last one go.

    Args:
        device: The GPU.
        kernels: Of a bundle.
        camera: Whose frames they are.
        manifest: Of the bundle.

    Raises:
        DeviceError: the driver refused.
    """

    def __init__(
        self, device: CudaDevice, kernels: CudaKernels, camera: Camera, manifest: Manifest
    ) -> None:
        self._device, self._kernels = device, kernels
        vision = manifest.geometry.vision
        clips, rows, columns = camera.grid
        self._most = clips * vision.temporal_patch_size
        self._resized = rows * vision.patch_size, columns * vision.patch_size
        values = level_values(manifest.preprocessing, vision).astype(np.float16)
        self._values = device.keep(values)
        self._known: _Known | None = None

    def __call__(self, frames: Sequence[Levels], patches: CudaBuffer) -> None:
        """Put what writes the patches of frames [H, W, 3] on the device's stream."""
        height, width, _ = frames[0].shape
        known = self._of((height, width))
        plan = known.plan
        host = known.frames.host().reshape(self._most, height, plan.pitch)
        for place, frame in zip(host, frames, strict=False):
            place[:, : frame[0].size] = frame.reshape(height, -1)
        known.frames.send(len(frames) * height * plan.pitch)
        addresses = {name: table.address for name, table in known.tables.items()}
        addresses |= {"frames": known.frames.address, "values": self._values.address}
        self._kernels.launch(
            KERNEL,
            plan.grid(len(frames)),
            {**addresses, "patches": patches.address, **plan.sizes},
            self._device.stream,
        )
        self._device.uses(known.frames, patches)

    def _of(self, size: Size) -> _Known:
        if self._known is None or self._known.plan.size != size:
            if self._known is not None:
                self._device.release(*self._known.tables.values(), self._known.frames)
            plan = planned(size, self._resized)
            tables = {name: self._device.keep(table) for name, table in plan.tables.items()}
            frames = self._device.allocate((self._most, size[0], plan.pitch), "uint8")
            self._known = _Known(plan, tables, frames)
        return self._known
