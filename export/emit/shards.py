"""Safetensors shards, written piece by piece: no more of a tensor is in memory than one piece."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from autovla_rt.export.files.safetensors_file import DTYPES, INDEX_FILE, SINGLE_FILE
from autovla_rt.export.tensors.tensor_info import TensorInfo

CODES = {dtype: code for code, dtype in DTYPES.items()} | {
    np.dtype(ml_dtypes.float8_e4m3fn): "F8_E4M3"
}

SHARD_BYTES = 2_000_000_000

Piece = tuple[str, NDArray[np.generic]]


@dataclass(frozen=True)
class Stored:
    """Tensors that are computed together, such as weights and their scales.

    Attributes:
        infos: Shape and type of each, by name.
        pieces: Computes (name, consecutive values of it), in any order of names.
    """

    infos: dict[str, TensorInfo]
    pieces: Callable[[], Iterable[Piece]]

    @property
    def num_bytes(self) -> int:
        """Bytes of all of them."""
        return sum(info.num_bytes for info in self.infos.values())


def write_shards(folder: Path, tensors: Sequence[Stored], shard_bytes: int = SHARD_BYTES) -> None:
    """Write model.safetensors, or shards of at most `shard_bytes` and their index.

    Tensors that are computed together share a shard, however large that is.
    """
    shards = list(_shards(tensors, shard_bytes))
    if len(shards) == 1:
        write_file(folder / SINGLE_FILE, shards[0])
        return
    weight_map = {}
    for number, shard in enumerate(shards, 1):
        name = f"model-{number:05}-of-{len(shards):05}.safetensors"
        write_file(folder / name, shard)
        weight_map.update({tensor: name for stored in shard for tensor in stored.infos})
    total = sum(stored.num_bytes for stored in tensors)
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / INDEX_FILE).write_text(json.dumps(index, indent=2) + "\n", "utf-8")


def _shards(tensors: Sequence[Stored], shard_bytes: int) -> Iterator[list[Stored]]:
    shard: list[Stored] = []
    filled = 0
    for stored in tensors:
        if shard and filled + stored.num_bytes > shard_bytes:
            yield shard
            shard, filled = [], 0
        shard.append(stored)
        filled += stored.num_bytes
    yield shard


def write_file(path: Path, shard: Sequence[Stored]) -> None:
    """Write tensors into one file."""
    infos = {name: info for stored in shard for name, info in stored.infos.items()}
    # Readers need every tensor at a multiple of its element's size, and the format has no gaps.
    ordered = sorted(infos, key=lambda name: -infos[name].dtype.itemsize)
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    begins, end = {}, 0
    for name in ordered:
        begins[name], end = end, end + infos[name].num_bytes
        header[name] = {
            "dtype": CODES[infos[name].dtype],
            "shape": infos[name].shape,
            "data_offsets": [begins[name], end],
        }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        start = file.tell()
        for stored in shard:
            _write_pieces(file, stored, {name: start + begins[name] for name in stored.infos})


def _write_pieces(file: BinaryIO, stored: Stored, cursors: dict[str, int]) -> None:
    ends = {name: cursor + stored.infos[name].num_bytes for name, cursor in cursors.items()}
    for name, values in stored.pieces():
        if values.dtype != stored.infos[name].dtype:
            raise ValueError(f"{name}: {values.dtype} where the header says {stored.infos[name]}")
        file.seek(cursors[name])
        cursors[name] += file.write(np.ascontiguousarray(values).reshape(-1).view(np.uint8).data)
    if cursors != ends:
        raise ValueError(f"{', '.join(cursors)}: not as many bytes as the header says")
