"""Weights in the safetensors format: one file, or shards with an index.

Format: 8 bytes little-endian header length, a JSON header (name -> dtype, shape, data_offsets
relative to the end of the header), then the data. https://huggingface.co/docs/safetensors
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from autovla_rt.errors import CheckpointError
from autovla_rt.export.files.binary_file import BinaryFile
from autovla_rt.export.tensors.tensor_info import TensorInfo

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"

DTYPES: dict[str, np.dtype[np.generic]] = {
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F16": np.dtype(np.float16),
    "F32": np.dtype(np.float32),
    "F64": np.dtype(np.float64),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "I16": np.dtype(np.int16),
    "I8": np.dtype(np.int8),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
}


class SafetensorsFile:
    """One safetensors file.

    Raises:
        CheckpointError: the file is missing, truncated or not in the format.
    """

    def __init__(self, path: Path) -> None:
        self._file = BinaryFile(path)
        try:
            header, self._data_start = _read_header(self._file)
            self.infos: dict[str, TensorInfo] = {}
            self._offsets: dict[str, int] = {}
            for name, entry in header.items():
                if name != "__metadata__":
                    self.infos[name], self._offsets[name] = self._parse(name, entry)
        except BaseException:
            self._file.close()
            raise

    @property
    def files(self) -> tuple[BinaryFile, ...]:
        """The one open file."""
        return (self._file,)

    def read_rows(self, name: str, start: int, stop: int) -> NDArray[np.generic]:
        """Return rows `start` to `stop` of axis 0, in the stored element type."""
        info = self.infos[name]
        row_bytes = info.num_bytes // max(info.shape[0], 1)
        return self._file.read_array(
            self._offsets[name] + start * row_bytes, (stop - start, *info.shape[1:]), info.dtype
        )

    def same_bytes(self, first: str, second: str) -> bool:
        """Tell whether two names share their bytes: never, the format has no sharing."""
        return first == second

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _parse(self, name: str, entry: Any) -> tuple[TensorInfo, int]:
        try:
            dtype = DTYPES[entry["dtype"]]
            info = TensorInfo(tuple(int(extent) for extent in entry["shape"]), dtype)
            begin, end = (int(offset) for offset in entry["data_offsets"])
        except (KeyError, TypeError, ValueError):
            raise CheckpointError(
                f"{self._file.path}: the header entry of {name} is {json.dumps(entry)[:200]}.\n"
                f"Expected shape, data_offsets and a dtype among {', '.join(DTYPES)}."
            ) from None
        if begin < 0 or end - begin != info.num_bytes:
            raise CheckpointError(
                f"{self._file.path}: {name} of shape {list(info.shape)} and type {info.dtype} "
                f"takes {info.num_bytes} bytes, but the header gives it bytes {begin} to {end}. "
                "The file is damaged: fetch it again."
            )
        if self._data_start + end > self._file.size:
            raise CheckpointError(
                f"{self._file.path}: {name} ends at byte {self._data_start + end}, but the file "
                f"has {self._file.size}. It is truncated: fetch it again."
            )
        return info, self._data_start + begin


class ShardedSafetensors:
    """Several safetensors files named by `model.safetensors.index.json`.

    Raises:
        CheckpointError: the index or a shard is unreadable, or they contradict each other.
    """

    def __init__(self, index_path: Path) -> None:
        weight_map = _read_weight_map(index_path)
        self._shards: dict[str, SafetensorsFile] = {}
        try:
            for shard_name in sorted(set(weight_map.values())):
                self._shards[shard_name] = SafetensorsFile(index_path.parent / shard_name)
            stored = {
                (name, shard_name)
                for shard_name, shard in self._shards.items()
                for name in shard.infos
            }
            if different := sorted(stored ^ set(weight_map.items())):
                raise CheckpointError(
                    f"{index_path}: the index and the shards disagree about "
                    f"{', '.join(f'{name} in {shard}' for name, shard in different[:20])}"
                    f" ({len(different)} in all). Fetch index and shards again, from one place."
                )
        except BaseException:
            self.close()
            raise
        self._shard_of = weight_map
        self.infos = {name: self._shards[shard].infos[name] for name, shard in weight_map.items()}

    @property
    def files(self) -> tuple[BinaryFile, ...]:
        """The open shards in the order of their names."""
        return tuple(file for shard in self._shards.values() for file in shard.files)

    def read_rows(self, name: str, start: int, stop: int) -> NDArray[np.generic]:
        """Return rows `start` to `stop` of axis 0, in the stored element type."""
        return self._shards[self._shard_of[name]].read_rows(name, start, stop)

    def same_bytes(self, first: str, second: str) -> bool:
        """Tell whether two names share their bytes: never, the format has no sharing."""
        return first == second

    def close(self) -> None:
        """Close all shards."""
        for shard in self._shards.values():
            shard.close()


def _read_header(file: BinaryFile) -> tuple[dict[str, Any], int]:
    """Return the JSON header and the offset of the first data byte."""
    try:
        length = int.from_bytes(file.read(0, 8), "little")
        if length > file.size - 8:
            raise ValueError(f"a header of {length} bytes in a file of {file.size}")
        header = json.loads(file.read(8, length))
        if not isinstance(header, dict):
            raise ValueError("a header that is no JSON object")
    except (CheckpointError, ValueError) as error:
        raise CheckpointError(
            f"{file.path}: expected a safetensors file (8 bytes length, JSON header, data), got "
            f"{error}. It is truncated or of another format (a git-lfs pointer?): fetch it again."
        ) from None
    return header, 8 + length


def _read_weight_map(index_path: Path) -> dict[str, str]:
    """Return tensor name -> shard file name.

    A shard must be a plain name beside the index, so that an index cannot point elsewhere.
    """
    try:
        weight_map = json.loads(index_path.read_text("utf-8"))["weight_map"]
        shard_names = set(weight_map.values())
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise CheckpointError(
            f"{index_path}: expected JSON with `weight_map` (tensor name -> file name), "
            f"got {error!r}. Fetch it again."
        ) from None
    outside = [name for name in shard_names if not isinstance(name, str) or Path(name).name != name]
    if outside:
        raise CheckpointError(
            f"{index_path}: shards must lie beside the index, but it names {outside[0]!r}."
        )
    return dict(weight_map)
