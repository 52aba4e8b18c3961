"""A trained checkpoint as named tensors, verified against the geometry and read one at a time."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autovla_rt.config import Geometry
from autovla_rt.errors import CheckpointError
from autovla_rt.export.files.lightning_file import LightningFile
from autovla_rt.export.files.safetensors_file import (
    INDEX_FILE,
    SINGLE_FILE,
    SafetensorsFile,
    ShardedSafetensors,
)
from autovla_rt.export.tensors.lora import LoraSettings, find_lora_settings, merge_lora
from autovla_rt.export.tensors.model_names import EMBEDDING, canonical_name, expected_shapes
from autovla_rt.export.tensors.tensor_info import TensorInfo, TensorStore
from autovla_rt.export.tensors.tensor_sources import Sources, capped, locate, verify


class Checkpoint:
    """Named tensors of a model, all of them there and of the right shape.

    `geometry` is that of the checkpoint: its vocabulary is the embedding's number of rows.
    `names` are those of the Qwen2.5-VL-3B hub files, in the order of computation. `stated_config`
    is the training config that a Lightning file holds of itself (its hyper_parameters, in plain
    containers), None for a Hugging Face folder or where the file states none.
    """

    def __init__(
        self,
        path: Path,
        store: TensorStore,
        sources: Sources,
        geometry: Geometry,
        stated_config: Mapping[str, Any] | None = None,
    ) -> None:
        self.path = path
        self.geometry = geometry
        self.stated_config = stated_config
        self.names = tuple(expected_shapes(geometry))
        self._store = store
        self._sources = sources

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the files."""
        self._store.close()

    def info(self, name: str) -> TensorInfo:
        """Return shape and element type of what `read` gives (float32 where LoRA is merged)."""
        source = self._sources[name]
        info = self._store.infos[source.stored]
        return info if source.lora is None else replace(info, dtype=np.dtype(np.float32))

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of one tensor."""
        return self.info(name).shape

    def read(self, name: str) -> NDArray[Any]:
        """Return one whole tensor in its stored type, LoRA merged in float32.

        Raises:
            CheckpointError: the file was cut short after it was opened.
            StorageError: the file system refuses to read.
        """
        return self.read_rows(name, 0, self.info(name).shape[0])

    def read_rows(self, name: str, start: int, stop: int) -> NDArray[Any]:
        """Return rows `start` to `stop` of axis 0, holding no other row in memory.

        Raises:
            IndexError: the tensor does not have these rows.
            CheckpointError, StorageError: as for `read`.
        """
        rows = self.info(name).shape[0]
        if not 0 <= start <= stop <= rows:
            raise IndexError(f"rows {start} to {stop} of {name}, which has {rows}")
        source = self._sources[name]
        base = self._store.read_rows(source.stored, start, stop)
        if source.lora is None:
            return base
        rank = self._store.infos[source.lora.a].shape[0]
        a = self._store.read_rows(source.lora.a, 0, rank)
        b = self._store.read_rows(source.lora.b, start, stop)
        return merge_lora(base, a, b, source.lora.scaling)

    def fingerprint(self) -> str:
        """Return the identity of the weights: one file's sha256, or that of the shards' list.

        For shards it is the sha256 of the lines `SHA256  NAME`, as sha256sum prints them. Reads
        every file once, in chunks of 4 MB.
        """
        digests = [(file.path.name, file.sha256()) for file in self._store.files]
        if len(digests) == 1:
            return digests[0][1]
        lines = "".join(f"{digest}  {name}\n" for name, digest in digests)
        return hashlib.sha256(lines.encode()).hexdigest()


def open_checkpoint(
    path: Path, *, geometry: Geometry, lora: LoraSettings | None = None
) -> Checkpoint:
    """Open a Hugging Face folder or a Lightning `.ckpt` and verify that it holds the whole model.

    A Lightning file is trained on a base folder whose config.json still states the vocabulary
    from before training, so there the embedding's rows replace `geometry`'s `vocab_size`; pass
    them to `check_vocabulary`. `lora` is used where the weights hold LoRA pairs and may be left out
    where the checkpoint's own hyper-parameters have it.

    Raises:
        CheckpointError: the file is unreadable; a tensor is missing, left over, of another shape
            or type; alpha of LoRA is unknown or contradictory; a stored head of a tied model is
            not the embedding.
        StorageError: the file system refuses to read.
    """
    if path.is_dir():
        store: TensorStore = _open_folder(path)
        stated = None
    else:
        store = lightning = LightningFile(path)
        stated = lightning.hyper_parameters
    try:
        if stated is not None:
            geometry = _with_stored_vocabulary(geometry, store)
            lora = _agreed_settings(path, lora, stated)
        sources = locate(path, store, lora)
        verify(path, store, sources, geometry)
    except BaseException:
        store.close()
        raise
    return Checkpoint(
        path, store, sources, geometry, stated if stated and isinstance(stated, Mapping) else None
    )


def check_vocabulary(vocab_size: int, action_start_id: int, num_actions: int) -> None:
    """Verify that the action tokens are the last rows of the vocabulary.

    Raises:
        CheckpointError: they are not.
    """
    if action_start_id + num_actions != vocab_size:
        raise CheckpointError(
            f"The checkpoint's embedding has {vocab_size} rows, but action_start_id "
            f"{action_start_id} + {num_actions} actions = {action_start_id + num_actions}.\n"
            "Actions must be the last tokens, without padding. Check that checkpoint, training "
            "config (model.tokens.action_start_id) and codebook belong together; a base model "
            "that was never trained on actions cannot be exported."
        )


def _open_folder(folder: Path) -> TensorStore:
    single, index = folder / SINGLE_FILE, folder / INDEX_FILE
    if single.exists() and index.exists():
        raise CheckpointError(
            f"{folder}: both {SINGLE_FILE} and {INDEX_FILE} are there. Remove the one that is not "
            "meant."
        )
    if single.exists():
        return SafetensorsFile(single)
    if index.exists():
        return ShardedSafetensors(index)
    found = sorted(entry.name for entry in folder.iterdir())
    raise CheckpointError(
        f"{folder}: expected {SINGLE_FILE} or {INDEX_FILE}, found "
        f"{capped(found, ', ') or 'nothing'}.\nGive the folder that "
        "save_pretrained(safe_serialization=True) wrote, or a Lightning .ckpt file."
    )


def _with_stored_vocabulary(geometry: Geometry, store: TensorStore) -> Geometry:
    rows = {
        info.shape[0]
        for name, info in store.infos.items()
        if canonical_name(name) == EMBEDDING and info.shape
    }
    if len(rows) != 1:
        return geometry  # verify reports the embedding as missing or ambiguous.
    language = geometry.language.model_copy(update={"vocab_size": rows.pop()})
    return geometry.model_copy(update={"language": language})


def _agreed_settings(path: Path, given: LoraSettings | None, stated: Any) -> LoraSettings | None:
    stored = find_lora_settings(stated, f"{path}: hyper_parameters")
    if given and stored and given != stored:
        raise CheckpointError(
            f"{path}: trained with LoRA alpha {stored.alpha:g} by its own hyper_parameters, but "
            f"alpha {given.alpha:g} was given. Give the config that it was trained with, or none."
        )
    return given or stored
