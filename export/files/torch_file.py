"""A file written by torch.save, read without torch.

Format (since torch 1.6): an uncompressed zip with `NAME/data.pkl`, a pickle in which every storage
is the persistent id ("storage", storage class, key, location, element count), `NAME/data/KEY` with
the raw elements and `NAME/byteorder`. See torch/serialization.py and torch/_utils.py of PyTorch.
"""

from __future__ import annotations

import io
import pickle
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import ml_dtypes
import numpy as np
from numpy.lib.stride_tricks import as_strided
from numpy.typing import NDArray

from autovla_rt.errors import CheckpointError
from autovla_rt.export.files.binary_file import BinaryFile
from autovla_rt.export.files.inert import inert_globals
from autovla_rt.export.files.unpickle import RestrictedUnpickler
from autovla_rt.export.tensors.tensor_info import TensorInfo

STORAGE_DTYPES: dict[str, np.dtype[np.generic]] = {
    "BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "HalfStorage": np.dtype(np.float16),
    "FloatStorage": np.dtype(np.float32),
    "DoubleStorage": np.dtype(np.float64),
    "LongStorage": np.dtype(np.int64),
    "IntStorage": np.dtype(np.int32),
    "ShortStorage": np.dtype(np.int16),
    "CharStorage": np.dtype(np.int8),
    "ByteStorage": np.dtype(np.uint8),
    "BoolStorage": np.dtype(np.bool_),
}

_ZIP_MAGIC = b"PK\x03\x04"
# Pickle of the number 0x1950a86a20f9469cfc6c, which opens every torch.save file before torch 1.6.
_LEGACY_MAGIC = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."
_LOCAL_HEADER_BYTES = 30


@dataclass(frozen=True)
class Storage:
    """A flat run of elements in the file."""

    key: str
    dtype: np.dtype[np.generic]
    count: int


@dataclass(frozen=True)
class TensorRef:
    """A strided view of a storage; offset and strides count elements."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    @property
    def info(self) -> TensorInfo:
        """Shape and element type."""
        return TensorInfo(self.shape, self.storage.dtype)

    @property
    def span(self) -> int:
        """Elements from the first to the last one that the view touches, both included."""
        if 0 in self.shape:
            return 0
        return 1 + sum(
            (extent - 1) * stride for extent, stride in zip(self.shape, self.strides, strict=True)
        )


class TorchFile:
    """An open torch.save file; `root` is the saved object with a TensorRef for every tensor.

    Raises:
        CheckpointError: the file is missing, truncated, compressed, of the format before torch 1.6
            or not of torch at all, or its pickle asks for anything but tensors and plain data.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.file = BinaryFile(path)
        try:
            self._members = self._read_directory()
            self._prefix = self._find_prefix()
            self._check_byte_order()
            self._positions: dict[str, int] = {}
            self.root = self._unpickle()
        except BaseException:
            self.file.close()
            raise

    def close(self) -> None:
        """Close the file."""
        self.file.close()

    def read_rows(self, ref: TensorRef, start: int, stop: int) -> NDArray[np.generic]:
        """Return rows `start` to `stop` of axis 0 of `ref`, contiguous.

        A transposed tensor costs reading all elements that its rows span.
        """
        rows = TensorRef(
            ref.storage,
            ref.offset + (start * ref.strides[0] if stop > start else 0),
            (stop - start, *ref.shape[1:]),
            ref.strides,
        )
        item_bytes = ref.storage.dtype.itemsize
        position = self._position(ref.storage) + rows.offset * item_bytes
        flat = self.file.read_array(position, (rows.span,), ref.storage.dtype)
        if rows.span == 0:
            return flat.reshape(rows.shape)
        strides = tuple(stride * item_bytes for stride in rows.strides)
        return np.ascontiguousarray(as_strided(flat, rows.shape, strides))

    def _read_directory(self) -> dict[str, zipfile.ZipInfo]:
        head = self.file.read(0, min(len(_LEGACY_MAGIC), self.file.size))
        if head == _LEGACY_MAGIC:
            raise CheckpointError(
                f"{self.path}: written in torch's format from before version 1.6. Convert it on a "
                'machine with torch: torch.save(torch.load(OLD, map_location="cpu"), NEW).'
            )
        if not head.startswith(_ZIP_MAGIC):
            raise CheckpointError(
                f"{self.path}: expected a zip written by torch.save (first bytes {_ZIP_MAGIC!r}), "
                f"got {head[:4]!r}. Give a Lightning .ckpt file or a Hugging Face folder."
            )
        try:
            with zipfile.ZipFile(self.path) as archive:
                members = {member.filename: member for member in archive.infolist()}
        except (zipfile.BadZipFile, OSError) as error:
            raise CheckpointError(
                f"{self.path}: the zip directory at the file's end is unreadable ({error}). "
                f"The file has {self.file.size} bytes and is probably truncated: fetch it again."
            ) from None
        for member in members.values():
            if member.compress_type != zipfile.ZIP_STORED or member.flag_bits & 1:
                raise CheckpointError(
                    f"{self.path}: {member.filename} is compressed or encrypted, but torch.save "
                    "stores entries as they are. Somebody packed the file anew: unpack it with "
                    "`unzip` and pack it with `zip -0`, or fetch the original."
                )
        return members

    def _find_prefix(self) -> str:
        """Return the folder inside the zip: its name is that of the file when it was saved."""
        pickles = [name for name in self._members if name.endswith("/data.pkl")]
        if len(pickles) != 1 or pickles[0].count("/") != 1:
            raise CheckpointError(
                f"{self.path}: expected one NAME/data.pkl in the zip, as torch.save writes it, "
                f"got {pickles or sorted(self._members)[:5]}."
            )
        return pickles[0].removesuffix("data.pkl")

    def _check_byte_order(self) -> None:
        name = self._prefix + "byteorder"
        # torch before 2.1 wrote no such entry and only ever ran little-endian in practice.
        order = self._entry(name) if name in self._members else b"little"
        if order != b"little":
            raise CheckpointError(
                f"{self.path}: byte order {order.decode('ascii', 'replace')!r}, expected 'little'. "
                "Save the checkpoint again on a little-endian machine."
            )

    def _unpickle(self) -> Any:
        stream = io.BytesIO(self._entry(self._prefix + "data.pkl"))
        try:
            return _Unpickler(stream, str(self.path), self._check_view).load()
        except CheckpointError:
            raise
        # A hand-made pickle can fail in any way that its opcodes or our stand-ins can.
        except Exception as error:
            raise CheckpointError(
                f"{self.path}: data.pkl is not a pickle of tensors and plain data ({error!r}). "
                "Nothing was executed. The file is damaged or forged: fetch it again."
            ) from None

    def _check_view(self, ref: TensorRef) -> None:
        """Refuse a tensor that leaves its storage, or a storage that its entry cannot hold."""
        name = f"{self._prefix}data/{ref.storage.key}"
        member = self._members.get(name)
        num_bytes = ref.storage.count * ref.storage.dtype.itemsize
        if member is None or member.file_size != num_bytes:
            raise CheckpointError(
                f"{self.path}: {name} should have {num_bytes} bytes, got "
                f"{'no such entry' if member is None else member.file_size}. Fetch the file again."
            )
        valid = len(ref.shape) == len(ref.strides) and min((*ref.shape, *ref.strides, 0)) >= 0
        if not valid or ref.offset < 0 or ref.offset + ref.span > ref.storage.count:
            raise CheckpointError(
                f"{self.path}: a tensor of shape {ref.shape}, strides {ref.strides} and offset "
                f"{ref.offset} leaves its storage {name} of {ref.storage.count} elements. "
                "The file is damaged: fetch it again."
            )

    def _entry(self, name: str) -> bytes:
        member = self._members[name]
        return self.file.read(self._data_offset(member), member.file_size)

    def _position(self, storage: Storage) -> int:
        """Return the byte where a storage begins, found in the local header on first use."""
        if storage.key not in self._positions:
            member = self._members[f"{self._prefix}data/{storage.key}"]
            self._positions[storage.key] = self._data_offset(member)
        return self._positions[storage.key]

    def _data_offset(self, member: zipfile.ZipInfo) -> int:
        """Skip the local header, whose extra field (alignment) is not the directory's."""
        header = self.file.read(member.header_offset, _LOCAL_HEADER_BYTES)
        if not header.startswith(_ZIP_MAGIC):
            raise CheckpointError(
                f"{self.path}: no zip entry at byte {member.header_offset}, where the directory "
                f"puts {member.filename}. The file is damaged: fetch it again."
            )
        name_bytes = int.from_bytes(header[26:28], "little")
        extra_bytes = int.from_bytes(header[28:30], "little")
        return member.header_offset + _LOCAL_HEADER_BYTES + name_bytes + extra_bytes


class _Unpickler(RestrictedUnpickler):
    """Build TensorRefs for tensors, inert stand-ins for known containers, nothing else."""

    def __init__(self, stream: IO[bytes], source: str, check: Callable[[TensorRef], None]) -> None:
        def rebuild_tensor(
            storage: Storage, offset: int, shape: Any, strides: Any, *_: object
        ) -> TensorRef:
            if not isinstance(storage, Storage):
                raise pickle.UnpicklingError(f"a tensor over {storage!r:.200}")
            ref = TensorRef(storage, int(offset), tuple(map(int, shape)), tuple(map(int, strides)))
            check(ref)
            return ref

        allowed: dict[tuple[str, str], Any] = {
            **inert_globals(),
            ("torch._utils", "_rebuild_tensor_v2"): rebuild_tensor,
            ("torch._utils", "_rebuild_parameter"): lambda tensor, *_: tensor,
            # Names stand for themselves: a pickle cannot alter a string.
            **{("torch", name): name for name in STORAGE_DTYPES},
        }
        super().__init__(stream, allowed, source, CheckpointError)

    def persistent_load(self, pid: Any) -> Storage:
        """Return the storage that a persistent id names."""
        kind, storage_class, key, _, count = pid
        if kind != "storage":
            raise pickle.UnpicklingError(f"unknown persistent id {pid!r:.200}")
        return Storage(str(key), STORAGE_DTYPES[storage_class], int(count))
