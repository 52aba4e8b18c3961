"""A file read by position with pread: no mapping, so no page of it counts as resident memory."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import numpy as np
from numpy.typing import DTypeLike, NDArray

from autovla_rt.errors import CheckpointError, StorageError

_CHUNK_BYTES = 4 << 20


class BinaryFile:
    """An open file of known size.

    Raises:
        CheckpointError: the file is missing.
        StorageError: the file system refuses to open or read it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._descriptor = os.open(path, os.O_RDONLY)
        except FileNotFoundError:
            raise CheckpointError(
                f"{path}: no such file. Check the path, or fetch the file again."
            ) from None
        except OSError as error:
            raise StorageError(f"{path}: cannot be opened: {error.strerror}.") from error
        self.size = os.fstat(self._descriptor).st_size

    def close(self) -> None:
        """Close the file; a second call does nothing."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def read(self, offset: int, length: int) -> bytes:
        """Return exactly `length` bytes from `offset`.

        Raises:
            CheckpointError: the file ends before that.
        """
        return self.read_array(offset, (length,), np.uint8).tobytes()

    def read_array(
        self, offset: int, shape: tuple[int, ...], dtype: DTypeLike
    ) -> NDArray[np.generic]:
        """Return the little-endian array of `shape` and `dtype` stored from byte `offset` on.

        Raises:
            CheckpointError: the file ends before the array does.
            StorageError: the file system refuses to read.
        """
        array: NDArray[np.generic] = np.empty(shape, dtype)
        if array.nbytes:
            # ml_dtypes' types have no buffer protocol of their own, bytes always have.
            self._fill(array.reshape(-1).view(np.uint8).data, offset)
        return array

    def sha256(self) -> str:
        """Return the hex digest of the whole file, read in chunks of 4 MB."""
        digest = hashlib.sha256()
        buffer = memoryview(bytearray(_CHUNK_BYTES))
        for offset in range(0, self.size, _CHUNK_BYTES):
            chunk = buffer[: min(_CHUNK_BYTES, self.size - offset)]
            self._fill(chunk, offset)
            digest.update(chunk)
        return digest.hexdigest()

    def _fill(self, view: memoryview, offset: int) -> None:
        """Fill `view` from `offset`; one preadv moves at most 2 GiB, so loop."""
        done = 0
        while done < len(view):
            try:
                count = os.preadv(self._descriptor, [view[done:]], offset + done)
            except OSError as error:
                raise StorageError(
                    f"{self.path}: cannot be read at byte {offset + done}: {error.strerror}."
                ) from error
            if count == 0:
                raise CheckpointError(
                    f"{self.path}: the file ends at byte {self.size}, but bytes {offset} to "
                    f"{offset + len(view)} are needed. It is truncated: fetch it again."
                )
            done += count
