"""The action head on an NVIDIA GPU: one launch of a compiled kernel for up to 16 states."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from autovla_rt.kernels.action_layout import MAX_ROWS, pack_mask, programs, scratch_shape
from autovla_rt.kernels.variants import head_name
from autovla_rt.runtime.backends import Float
from autovla_rt.runtime.backends.cuda_device import CudaBuffer, CudaDevice, CudaMemory
from autovla_rt.runtime.backends.cuda_kernels import CudaKernels

KERNEL = head_name("fp16", 1)


class GpuActionHead:
    """Multiplies final states by the rows of the actions, which lie on the GPU in float16.

    Args:
        device: The GPU.
        kernels: Of a bundle.
        weight: float32 [N, H] of the N actions.

    Raises:
        DeviceError: the driver refused.
    """

    def __init__(self, device: CudaDevice, kernels: CudaKernels, weight: Float) -> None:
        self._device, self._kernels = device, kernels
        self._actions, width = weight.shape
        self._hidden = device.allocate((MAX_ROWS, width), "float16")
        self._logits = device.allocate((MAX_ROWS, self._actions), "float32")
        kept: dict[str, NDArray[Any]] = {
            "weight": weight.astype(np.float16),
            "scales": np.ones(1, np.float32),
            "allowed": pack_mask(np.ones((MAX_ROWS, self._actions), np.bool_)),
            "partial": np.zeros(scratch_shape(self._actions, 1), np.int64),
            "arrived": np.zeros(1, np.int32),
            "best_ids": np.zeros((MAX_ROWS, 1), np.int32),
            "best_logits": np.zeros((MAX_ROWS, 1), np.float32),
        }
        self._memory: dict[str, CudaMemory | CudaBuffer] = {
            **{name: device.keep(array) for name, array in kept.items()},
            "hidden": self._hidden,
            "logits": self._logits,
        }

    def __call__(self, hidden: Float) -> Float:
        """Return the logits [m, N] of `m` final states [m, H]."""
        parts = [
            self._launch(hidden[start : start + MAX_ROWS])
            for start in range(0, len(hidden), MAX_ROWS)
        ]
        return np.concatenate(parts)

    def _launch(self, hidden: Float) -> Float:
        rows = len(hidden)
        self._hidden.write(hidden.astype(np.float16))
        addresses = {name: of.address for name, of in self._memory.items()}
        self._kernels.launch(
            KERNEL,
            (programs(self._actions), 1, 1),
            {**addresses, "rows": rows, "actions": self._actions},
            self._device.stream,
        )
        self._device.uses(*self._memory.values())
        return self._logits.read((rows, self._actions))
