"""A flat file of tensors that a graph refers to.

Tensors are appended as they stream from the checkpoint, so a build holds one of them at a time.
Several graphs may refer to the same tensor: it is written once.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto

ALIGNMENT = 64
"""Bytes; what vector loads of every backend are content with."""

ELEMENT_TYPES = {
    "float32": TensorProto.FLOAT,
    "float16": TensorProto.FLOAT16,
    "float8_e4m3fn": TensorProto.FLOAT8E4M3FN,
    "int8": TensorProto.INT8,
    "uint8": TensorProto.UINT8,
    "int4": TensorProto.INT4,
    "int32": TensorProto.INT32,
    "int64": TensorProto.INT64,
}

PACKED = {"float8_e4m3fn": 1, "int4": 2}
"""Types that NumPy lacks, given as bytes (uint8) -> elements in each."""


@dataclass(frozen=True)
class StoredTensor:
    """Where one tensor lies."""

    dtype: str
    shape: tuple[int, ...]
    offset: int
    length: int


def numpy_dtype(dtype: str) -> np.dtype[np.generic]:
    """Return the NumPy type in which elements of a type are given."""
    return np.dtype("uint8" if dtype in PACKED else dtype)


class WeightFile:
    """Append-only writer of one external-data file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: IO[bytes] = path.open("wb")
        self._tensors: dict[str, StoredTensor] = {}

    def __contains__(self, name: str) -> bool:
        return name in self._tensors

    def add(
        self, name: str, dtype: str, shape: tuple[int, ...], chunks: Iterable[NDArray[np.generic]]
    ) -> None:
        """Append a tensor given as consecutive chunks of its row-major elements.

        Elements of `PACKED` types are given as bytes, the earlier of two in the low half.

        Raises:
            ValueError: the chunks do not add up to `shape`.
        """
        self._file.write(b"\0" * (-self._file.tell() % ALIGNMENT))
        offset = self._file.tell()
        element = numpy_dtype(dtype)
        for chunk in chunks:
            self._file.write(np.ascontiguousarray(chunk, element).data)
        length = self._file.tell() - offset
        if length * PACKED.get(dtype, 1) != int(np.prod(shape)) * element.itemsize:
            raise ValueError(f"{name}: {length} bytes written for shape {shape} of {dtype}")
        self._tensors[name] = StoredTensor(dtype, shape, offset, length)

    def mapped(self, name: str) -> NDArray[np.generic]:
        """Return a stored tensor, mapped: pages are read when they are looked at."""
        stored = self._tensors[name]
        self._file.flush()
        return np.memmap(self.path, stored.dtype, "r", stored.offset, stored.shape)

    def proto(self, name: str) -> TensorProto:
        """Return the ONNX initializer that refers to a stored tensor."""
        stored = self._tensors[name]
        tensor = TensorProto(
            name=name,
            data_type=ELEMENT_TYPES[stored.dtype],
            dims=stored.shape,
            data_location=TensorProto.EXTERNAL,
        )
        for key, value in (
            ("location", self.path.name),
            ("offset", str(stored.offset)),
            ("length", str(stored.length)),
        ):
            tensor.external_data.add(key=key, value=value)
        return tensor

    def __enter__(self) -> WeightFile:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Flush and close the file; graphs may still refer to its tensors."""
        self._file.close()
