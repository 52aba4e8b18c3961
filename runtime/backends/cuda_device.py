"""An NVIDIA GPU's memory, one stream on it, and CUDA graphs, through the driver alone.

On a GPU of its own memory, what the host writes goes through pinned memory; on Tegra, whose GPU
shares the CPU's memory, host and GPU look at the same bytes and nothing is copied.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autovla_rt.runtime.backends.cuda_kernels import (
    compute_capability,
    open_driver,
    require_success,
)
from autovla_rt.runtime.backends.executor import Shape


class CudaMemory:
    """Memory of the GPU's own.

    Attributes:
        address: For the GPU.
        dtype: Of its elements.
    """

    def __init__(self, address: int, dtype: np.dtype[Any]) -> None:
        self.address, self.dtype = address, dtype


class CudaBuffer(CudaMemory):
    """Memory that GPU and host exchange arrays in, and the host's view of it."""

    def __init__(
        self, device: CudaDevice, address: int, host: NDArray[Any], *, shared: bool
    ) -> None:
        super().__init__(address, host.dtype)
        self._device, self._host, self._shared = device, host, shared
        self._written = -1
        """How often the device had been waited for when this was last written."""

    def write(self, array: NDArray[Any]) -> None:
        """Copy an array to the beginning, after all work that may still read what was there."""
        device = self._device
        if device.is_busy or self._written == device.waits:
            device.wait()
        self._host[: array.size] = array.reshape(-1)
        if not self._shared:
            size = array.size * self.dtype.itemsize
            device.put("cuMemcpyHtoDAsync", self.address, self._host.ctypes.data, size)
        self._written = device.waits

    def read(self, shape: Shape) -> NDArray[Any]:
        """Return what lies at the beginning, copied, once all work is done."""
        count = prod(shape)
        if not self._shared:
            size = count * self.dtype.itemsize
            self._device.put("cuMemcpyDtoHAsync", self._host.ctypes.data, self.address, size)
        self._device.wait()
        return self._host[:count].reshape(shape).copy()


class CudaDevice:
    """The first GPU, its primary context and one stream, for as long as the process lives.

    Attributes:
        sm: Compute capability without the dot.
        name: Of the GPU.
        stream: Handle of the stream that all work goes to.
        is_busy: Whether anything but copies was put on it since it was last waited for; whoever
            puts it there says so.
        waits: How often it was waited for.

    Raises:
        DependencyError: cuda-bindings, the driver or a GPU is missing.
        DeviceError: the driver refused.
    """

    def __init__(self) -> None:
        self._driver = open_driver()
        self._handle = self._get("cuDeviceGet", 0)
        self._done("cuCtxSetCurrent", self._get("cuDevicePrimaryCtxRetain", self._handle))
        self.sm = compute_capability(self._driver)
        self.name = bytes(self._get("cuDeviceGetName", 100, self._handle)).decode().strip("\0 ")
        integrated = self._driver.CUdevice_attribute.CU_DEVICE_ATTRIBUTE_INTEGRATED
        self._shares_memory = bool(self._get("cuDeviceGetAttribute", integrated, self._handle))
        flags = self._driver.CUstream_flags.CU_STREAM_NON_BLOCKING
        self.stream = int(self._get("cuStreamCreate", flags))
        self.is_busy, self.waits = False, 0

    def allocate(self, shape: Shape, dtype: str) -> CudaBuffer:
        """Return zeroed memory to be exchanged with the host."""
        size = prod(shape) * np.dtype(dtype).itemsize
        host = self._pinned(size)
        if self._shares_memory:
            address = int(self._get("cuMemHostGetDevicePointer", host.ctypes.data, 0))
            return CudaBuffer(self, address, host.view(dtype), shared=True)
        address = int(self._get("cuMemAlloc", size))
        self.put("cuMemsetD8Async", address, 0, size)
        return CudaBuffer(self, address, host.view(dtype), shared=False)

    def keep(self, array: NDArray[Any]) -> CudaMemory:
        """Return memory of the GPU's own with an array in it."""
        address = int(self._get("cuMemAlloc", array.nbytes))
        given = np.ascontiguousarray(array)
        # On the stream, which does not wait for copies that are put elsewhere.
        self.put("cuMemcpyHtoDAsync", address, given.ctypes.data, given.nbytes)
        self.wait()
        return CudaMemory(address, array.dtype)

    def free_memory(self) -> int:
        """Return how many bytes of the GPU's memory are free."""
        free, _total = require_success(self._driver, self._driver.cuMemGetInfo(), "cuMemGetInfo")
        return int(free)

    def scratch(self, size: int) -> int:
        """Return the address of that many bytes of the GPU's own, at least one."""
        return int(self._get("cuMemAlloc", max(size, 1)))

    def put(self, name: str, *arguments: Any) -> None:
        """Put a call of the driver that takes a stream last on the stream."""
        self._done(name, *arguments, self.stream)

    def wait(self) -> None:
        """Wait until all work is done."""
        self._done("cuStreamSynchronize", self.stream)
        self.waits += 1
        self.is_busy = False

    def capture(self, work: Callable[[], object]) -> Any:
        """Return a CUDA graph of the work that a function puts on the stream; nothing is run."""
        mode = self._driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
        self._done("cuStreamBeginCapture", self.stream, mode)
        try:
            work()
        finally:
            graph = self._get("cuStreamEndCapture", self.stream)
        made = self._get("cuGraphInstantiate", graph, 0)
        self._done("cuGraphDestroy", graph)
        return made

    def replay(self, graph: Any) -> None:
        """Put a captured graph on the stream."""
        self.put("cuGraphLaunch", graph)

    def forget(self, graph: Any) -> None:
        """Give a captured graph's memory back."""
        self.wait()
        self._done("cuGraphExecDestroy", graph)

    def _pinned(self, size: int) -> NDArray[np.uint8]:
        """Return zeroed memory of the host that the GPU reaches, too."""
        flags = self._driver.CU_MEMHOSTALLOC_DEVICEMAP
        address = int(self._get("cuMemHostAlloc", size, flags))
        view = np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(address))
        view[:] = 0
        return view

    def _get(self, name: str, *arguments: Any) -> Any:
        (value,) = require_success(self._driver, getattr(self._driver, name)(*arguments), name)
        return value

    def _done(self, name: str, *arguments: Any) -> None:
        require_success(self._driver, getattr(self._driver, name)(*arguments), name)
