"""Device memory and times on an NVIDIA GPU, through its driver alone."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autovla_rt.runtime.backends.cuda_kernels import (
    compute_capability,
    open_driver,
    require_success,
)


class Device:
    """The first device, as the current context; gives its memory back at the end.

    Raises:
        DependencyError: there is no driver, no device or no cuda-bindings.
    """

    def __init__(self) -> None:
        self._driver = open_driver()
        self._handle = self._call("cuDeviceGet", 0)
        self._call("cuCtxSetCurrent", self._call("cuDevicePrimaryCtxRetain", self._handle))
        self._pointers: list[Any] = []
        self.stream = int(self._call("cuStreamCreate", 0))

    def __enter__(self) -> Device:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.free()
        self._call("cuStreamDestroy", self.stream)
        self._call("cuDevicePrimaryCtxRelease", self._handle)

    @property
    def name(self) -> str:
        """The device's name."""
        return bytes(self._call("cuDeviceGetName", 100, self._handle)).decode().strip("\0 ")

    @property
    def sm(self) -> int:
        """Compute capability without the dot."""
        return compute_capability(self._driver)

    def upload(self, array: NDArray[Any]) -> int:
        """Copy an array to new device memory; returns its address."""
        array = np.ascontiguousarray(array)
        pointer = self._call("cuMemAlloc", max(array.nbytes, 1))
        self._pointers.append(pointer)
        self._call("cuMemcpyHtoD", pointer, array.ctypes.data, array.nbytes)
        return int(pointer)

    def download(self, address: int, like: NDArray[Any]) -> NDArray[Any]:
        """Wait for the stream and copy device memory into a new array of a shape and type."""
        self.wait()
        array = np.empty_like(like)
        self._call("cuMemcpyDtoH", array.ctypes.data, address, array.nbytes)
        return array

    def free(self) -> None:
        """Give back all memory that was uploaded."""
        self.wait()
        while self._pointers:
            self._call("cuMemFree", self._pointers.pop())

    def wait(self) -> None:
        """Wait until the stream is empty."""
        self._call("cuStreamSynchronize", self.stream)

    def times(self, launches: Sequence[Callable[[], None]], rounds: int) -> list[float]:
        """Return milliseconds of one launch, one figure for each round.

        All launches are captured as one CUDA graph, so Python's time between them does not count;
        a round replays it between two events. Three rounds run before, untimed.
        """
        mode = self._driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
        self._call("cuStreamBeginCapture", self.stream, mode)
        for launch in launches:
            launch()
        graph = self._call("cuStreamEndCapture", self.stream)
        replay = self._call("cuGraphInstantiate", graph, 0)
        first, last = (self._call("cuEventCreate", 0) for _ in range(2))
        times = []
        for _ in range(rounds + 3):
            self._call("cuEventRecord", first, self.stream)
            self._call("cuGraphLaunch", replay, self.stream)
            self._call("cuEventRecord", last, self.stream)
            self._call("cuEventSynchronize", last)
            times.append(self._call("cuEventElapsedTime", first, last) / len(launches))
        for event in (first, last):
            self._call("cuEventDestroy", event)
        self._call("cuGraphExecDestroy", replay)
        self._call("cuGraphDestroy", graph)
        return times[3:]

    def copy(self, to: int, source: int, size: int) -> None:
        """Put a copy of `size` bytes from device memory to device memory on the stream."""
        self._call("cuMemcpyDtoDAsync", to, source, size, self.stream)

    def _call(self, name: str, *arguments: Any) -> Any:
        result = getattr(self._driver, name)(*arguments)
        values = require_success(self._driver, result, name)
        return values[0] if values else None


def spread(times: list[float]) -> dict[str, float]:
    """Return median, smallest and largest, in milliseconds."""
    return {
        "median_ms": round(statistics.median(times), 5),
        "min_ms": round(min(times), 5),
        "max_ms": round(max(times), 5),
    }
