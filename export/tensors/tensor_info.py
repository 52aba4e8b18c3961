"""What is known of a stored tensor before it is read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from autovla_rt.export.files.binary_file import BinaryFile


@dataclass(frozen=True)
class TensorInfo:
    """Shape and element type of one tensor."""

    shape: tuple[int, ...]
    dtype: np.dtype[np.generic]

    @property
    def num_bytes(self) -> int:
        """Bytes that the tensor takes in memory."""
        count = self.dtype.itemsize
        for extent in self.shape:
            count *= extent
        return count


class TensorStore(Protocol):
    """A file, or several, that hold named tensors; names as they stand in the file."""

    @property
    def files(self) -> tuple[BinaryFile, ...]:
        """The open files that make up the store, in a fixed order."""

    @property
    def infos(self) -> dict[str, TensorInfo]:
        """Shape and type of every tensor, by stored name."""

    def read_rows(self, name: str, start: int, stop: int) -> NDArray[np.generic]:
        """Return rows `start` to `stop` of axis 0, in the stored element type."""

    def same_bytes(self, first: str, second: str) -> bool:
        """Tell whether two names are known, without reading, to share their bytes."""

    def close(self) -> None:
        """Close all files."""
