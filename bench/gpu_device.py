"""Memory that is given back, and times, on a GPU: what a benchmark adds to the runtime's."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autovla_rt.runtime.backends.cuda_device import CudaDevice, CudaMemory

WARM_UP_ROUNDS = 3


class Device(CudaDevice):
    """The first device, whose memory is given back at the end.

    Raises:
        DependencyError: there is no driver, no device or no cuda-bindings.
    """

    def __init__(self) -> None:
        super().__init__()
        self._uploaded: list[CudaMemory] = []

    def __enter__(self) -> Device:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.free()

    def upload(self, array: NDArray[Any]) -> int:
        """Copy an array to new device memory; returns its address."""
        self._uploaded.append(self.keep(array))
        return self._uploaded[-1].address

    def download(self, address: int, like: NDArray[Any]) -> NDArray[Any]:
        """Copy device memory into a new array of a shape and type, once all work is done."""
        array = np.empty_like(like)
        self.put("cuMemcpyDtoHAsync", array.ctypes.data, address, array.nbytes)
        self.wait()
        return array

    def free(self) -> None:
        """Give back all memory that was uploaded."""
        self.release(*self._uploaded)
        self._uploaded.clear()

    def times(self, launches: Sequence[Callable[[], None]], rounds: int) -> list[float]:
        """Return milliseconds of one launch, one figure for each round.

        All launches are captured as one CUDA graph, so Python's time between them does not count;
        a round replays it between two events. Three rounds run before, untimed.
        """
        graph = self.capture(lambda: [launch() for launch in launches])
        first, last = (self._get("cuEventCreate", 0) for _ in range(2))
        times = []
        for _ in range(WARM_UP_ROUNDS + rounds):
            self._done("cuEventRecord", first, self.stream)
            self.replay(graph)
            self._done("cuEventRecord", last, self.stream)
            self.wait()
            times.append(self._get("cuEventElapsedTime", first, last) / len(launches))
        for event in (first, last):
            self._done("cuEventDestroy", event)
        self.forget(graph)
        return times[WARM_UP_ROUNDS:]

    def copy(self, to: int, source: int, size: int) -> None:
        """Put a copy of `size` bytes from device memory to device memory on the stream."""
        self.put("cuMemcpyDtoDAsync", to, source, size)


def spread(times: list[float]) -> dict[str, float]:
    """Return median, smallest and largest, in milliseconds."""
    return {
        "median_ms": round(statistics.median(times), 5),
        "min_ms": round(min(times), 5),
        "max_ms": round(max(times), 5),
    }
