"""An NVIDIA GPU's memory, streams on it, and CUDA graphs, through the driver alone.

On a GPU of its own memory, what the host writes goes through pinned memory; on Tegra, whose GPU
shares the CPU's memory, host and GPU look at the same bytes and nothing is copied.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from copy import copy
from math import prod
from threading import get_ident
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from autovla_rt.runtime.backends.cuda_kernels import (
    compute_capability,
    open_driver,
    require_success,
)
from autovla_rt.runtime.backends.executor import Fetched, Shape


class CudaMemory:
    """Memory of the GPU's own.

    Attributes:
        address: For the GPU.
        dtype: Of its elements.
        used: The last piece of work that uses it, as `CudaDevice.issued` counts them.
        blocks: What gives it back: calls of the driver, each with the pointer that it takes.
    """

    def __init__(self, address: int, dtype: np.dtype[Any], *blocks: tuple[str, int]) -> None:
        self.address, self.dtype, self.blocks = address, dtype, blocks
        self.used = 0


class CudaBuffer(CudaMemory):
    """Memory that GPU and host exchange arrays in, and the host's view of it."""

    def __init__(
        self, device: CudaDevice, address: int, host: NDArray[Any], *, shared: bool
    ) -> None:
        blocks = [("cuMemFreeHost", host.ctypes.data), ("cuMemFree", address)]
        super().__init__(address, host.dtype, *(blocks[:1] if shared else blocks))
        self._device, self._host, self._shared = device, host, shared
        self._copied = device.event()

    def write(self, array: NDArray[Any]) -> None:
        """Copy an array to the beginning, after all work that may still read what was there."""
        self.host()[: array.size] = array.reshape(-1)
        self.send(array.size)

    def host(self) -> NDArray[Any]:
        """Return the host's view [elements], to be written once no work needs what is there.

        `send` then hands it over.
        """
        self._device.enter()
        if self.used > self._device.finished:
            self._device.wait()
        return self._host

    def send(self, count: int) -> None:
        """Let work that is put from now on see the first `count` elements of the host's view."""
        if not self._shared:
            size = count * self.dtype.itemsize
            self._device.put("cuMemcpyHtoDAsync", self.address, self._host.ctypes.data, size)

    def read(self, shape: Shape) -> NDArray[Any]:
        """Return what lies at the beginning, copied, once all work is done."""
        return self.fetch(shape)()

    def fetch(self, shape: Shape) -> Fetched:
        """Return what waits for the work put so far, and returns what lies at the beginning."""
        count, device = prod(shape), self._device
        if not self._shared:
            size = count * self.dtype.itemsize
            device.put("cuMemcpyDtoHAsync", self._host.ctypes.data, self.address, size)
            device.uses(self)
        issued = device.issued
        device.put("cuEventRecord", self._copied)

        def fetched() -> NDArray[Any]:
            device.wait_for(self._copied, issued)
            return self._host[:count].reshape(shape).copy()

        return fetched


class CudaDevice:
    """The first GPU, its primary context and one stream, for as long as the process lives.

    Attributes:
        sm: Compute capability without the dot.
        name: Of the GPU.
        cuda: Newest CUDA that the driver runs, as 13.0.
        stream: Handle of the stream that all work goes to.
        issued: How many pieces of work were put on it.
        finished: How many of them are known to be done.

    Raises:
        DependencyError: cuda-bindings, the driver or a GPU is missing.
        DeviceError: the driver refused.
    """

    def __init__(self) -> None:
        self._driver = open_driver()
        self._handle = self._get("cuDeviceGet", 0)
        self._context, self._thread = self._get("cuDevicePrimaryCtxRetain", self._handle), 0
        self.enter()
        self.sm = compute_capability(self._driver)
        self.name = bytes(self._get("cuDeviceGetName", 100, self._handle)).decode().strip("\0 ")
        version = int(self._get("cuDriverGetVersion"))
        self.cuda = f"{version // 1000}.{version % 1000 // 10}"
        integrated = self._driver.CUdevice_attribute.CU_DEVICE_ATTRIBUTE_INTEGRATED
        self._shares_memory = bool(self._get("cuDeviceGetAttribute", integrated, self._handle))
        self._open_stream()

    def enter(self) -> None:
        """Make the GPU current in this thread, which all that follows needs."""
        if (thread := get_ident()) != self._thread:
            self._done("cuCtxSetCurrent", self._context)
            self._thread = thread

    def beside(self) -> Self:
        """Return the same GPU with another stream."""
        other = copy(self)
        other._open_stream()
        return other

    def _open_stream(self) -> None:
        flags = self._driver.CUstream_flags.CU_STREAM_NON_BLOCKING
        self.stream = int(self._get("cuStreamCreate", flags))
        self.issued = self.finished = 0

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
        return CudaMemory(address, array.dtype, ("cuMemFree", address))

    def free_memory(self) -> int:
        """Return how many bytes of the GPU's memory are free."""
        free, _total = require_success(self._driver, self._driver.cuMemGetInfo(), "cuMemGetInfo")
        return int(free)

    def scratch(self, size: int) -> int:
        """Return the address of that many bytes of the GPU's own, at least one."""
        return int(self._get("cuMemAlloc", max(size, 1)))

    def release(self, *memory: CudaMemory) -> None:
        """Give memory back, once all work is done."""
        self.wait()
        for call, pointer in (block for of in memory for block in of.blocks):
            self._done(call, pointer)

    def put(self, name: str, *arguments: Any) -> None:
        """Put a call of the driver that takes a stream last on the stream."""
        self._done(name, *arguments, self.stream)
        self.issued += 1

    def uses(self, *memory: CudaMemory) -> None:
        """Note that work that was put on the stream just now uses some memory."""
        self.issued += 1
        for of in memory:
            of.used = self.issued

    def wait(self) -> None:
        """Wait until all work is done."""
        self._done("cuStreamSynchronize", self.stream)
        self.finished = self.issued

    def event(self) -> Any:
        """Return an event that can be put on the stream."""
        flags = self._driver.CUevent_flags.CU_EVENT_DISABLE_TIMING
        return self._get("cuEventCreate", flags)

    def wait_for(self, event: Any, issued: int) -> None:
        """Wait for an event that was put on the stream after so many pieces of work."""
        self._done("cuEventSynchronize", event)
        self.finished = max(self.finished, issued)

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
