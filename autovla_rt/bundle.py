"""The engine bundle: a folder with a manifest, written atomically and verified on loading.

The manifest `engine.json` holds the size and sha256 of every other file. Hashes are checked on the
first load and remembered by inode, size and modification time; `verify=True` repeats the check.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from autovla_rt import __version__
from autovla_rt.config import (
    ActionSpace,
    Camera,
    CompiledPrompt,
    Geometry,
    Model,
    Precision,
    Preprocessing,
    Recipe,
)
from autovla_rt.errors import BundleError, StorageError

FORMAT_VERSION = 1
MANIFEST = "engine.json"
HASH_CHUNK = 4 << 20


class FileRecord(Model):
    """Size in bytes and sha256 of one bundle file."""

    size: int
    sha256: str


class CheckpointRecord(Model):
    """Where the weights came from."""

    path: str
    sha256: str


class Manifest(Model):
    """Everything a loader must know before it opens a weight."""

    format_version: int = FORMAT_VERSION
    autovla_rt_version: str = __version__
    name: str
    target: str
    backend: str
    precision: Precision
    geometry: Geometry
    cameras: tuple[Camera, ...]
    preprocessing: Preprocessing
    actions: ActionSpace
    use_cot: bool
    end_token_ids: tuple[int, ...]
    kv_capacity: int
    checkpoint: CheckpointRecord
    library_versions: dict[str, str]
    notes: tuple[str, ...] = ()
    files: dict[str, FileRecord] = Field(default_factory=dict)


class Bundle:
    """A verified bundle on disk."""

    def __init__(self, folder: Path, manifest: Manifest, identity: str) -> None:
        self.folder = folder
        self.manifest = manifest
        self.identity = identity
        """sha256 of engine.json, which holds the sha256 of everything else."""

    def path(self, name: str) -> Path:
        """Path of a file that the manifest lists.

        Raises:
            BundleError: the manifest does not list it.
        """
        if name not in self.manifest.files:
            raise BundleError(
                f"{self.folder}: expected the file {name} in the manifest, got only "
                f"{', '.join(sorted(self.manifest.files))}. Build the bundle again."
            )
        return self.folder / name

    def recipe(self) -> Recipe:
        """Prompt and answer format."""
        return Recipe.model_validate_json(self.path("recipe.json").read_bytes())

    def prompt(self) -> CompiledPrompt:
        """The compiled prompt."""
        return CompiledPrompt.model_validate_json(self.path("prompt.json").read_bytes())


def load_bundle(folder: Path, *, verify: bool = False) -> Bundle:
    """Open a bundle and verify it.

    Raises:
        BundleError: no manifest, another format version, a file missing, truncated or altered.
    """
    manifest_path = folder / MANIFEST
    try:
        raw = manifest_path.read_bytes()
    except OSError as error:
        raise BundleError(
            f"{folder}: expected an engine bundle with {MANIFEST}, got: {error.strerror}.\n"
            "Build one with `make engine`, or pass --engine the folder that `autovla-rt build` wrote."
        ) from error
    manifest = _parse(manifest_path, raw)
    identity = hashlib.sha256(raw).hexdigest()
    _check_files(folder, manifest, identity, verify)
    return Bundle(folder, manifest, identity)


def _parse(path: Path, raw: bytes) -> Manifest:
    try:
        content = json.loads(raw)
        version = content["format_version"]
    except (ValueError, KeyError, TypeError) as error:
        raise BundleError(
            f"{path}: expected a JSON manifest with format_version, got {error!r}. "
            "The file is damaged: copy or build the bundle again."
        ) from error
    if version != FORMAT_VERSION:
        raise BundleError(
            f"{path}: expected format version {FORMAT_VERSION} (autovla-rt {__version__}), got "
            f"{version} (written by autovla-rt {content.get('autovla_rt_version', 'unknown')}).\n"
            "Install that version of autovla-rt, or build the bundle again with this one."
        )
    try:
        return Manifest.model_validate(content)
    except ValidationError as error:
        raise BundleError(f"{path}: the manifest does not fit its schema:\n{error}") from error


def _check_files(folder: Path, manifest: Manifest, identity: str, verify: bool) -> None:
    """Check sizes always, hashes unless the same inodes were checked before."""
    stamps: dict[str, list[int]] = {}
    for name, record in manifest.files.items():
        try:
            status = (folder / name).stat()
        except OSError as error:
            raise BundleError(
                f"{folder / name}: expected {record.size} bytes, got: {error.strerror}. "
                "The bundle is incomplete: copy or build it again."
            ) from error
        if status.st_size != record.size:
            raise BundleError(
                f"{folder / name}: expected {record.size} bytes, got {status.st_size}. "
                "The file was truncated or replaced: copy or build the bundle again."
            )
        stamps[name] = [status.st_ino, status.st_size, status.st_mtime_ns]
    memory = _memory_path(identity)
    if not verify and _remembered(memory) == stamps:
        return
    for name, record in manifest.files.items():
        digest = sha256_of(folder / name)
        if digest != record.sha256:
            raise BundleError(
                f"{folder / name}: expected sha256 {record.sha256}, got {digest}. "
                "The file was altered or damaged: copy or build the bundle again."
            )
    # A read-only or full home directory only costs the next load its time.
    with contextlib.suppress(OSError):
        memory.parent.mkdir(parents=True, exist_ok=True)
        memory.write_text(json.dumps(stamps))


def _memory_path(identity: str) -> Path:
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "autovla-rt" / "verified" / f"{identity}.json"


def _remembered(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return None


def sha256_of(path: Path) -> str:
    """Stream a file's sha256."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(HASH_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


@contextlib.contextmanager
def bundle_writer(folder: Path) -> Iterator[Path]:
    """Yield an empty folder beside `folder` that replaces it when the block ends without error.

    Call `seal` inside the block. The old bundle stays loadable until the exchange, and whatever
    fails, a process killed or a disk full, leaves it as it was.

    Raises:
        StorageError: `folder` is something else than a bundle, or the file system refused.
    """
    if folder.exists() and not (folder / MANIFEST).exists() and any(folder.iterdir()):
        raise StorageError(
            f"{folder}: expected an engine bundle or a new folder, got a folder without "
            f"{MANIFEST}. It was not touched: choose another --out."
        )
    with _replacing(folder) as building:
        yield building


@contextlib.contextmanager
def folder_writer(folder: Path) -> Iterator[Path]:
    """Yield an empty folder that becomes `folder`, which must be new or empty, when all went well.

    Raises:
        StorageError: there is something in `folder`, or the file system refused.
    """
    if folder.exists() and any(folder.iterdir()):
        raise StorageError(
            f"{folder}: expected a new or empty folder. It was not touched: choose another --out."
        )
    with _replacing(folder) as building:
        yield building


@contextlib.contextmanager
def _replacing(folder: Path) -> Iterator[Path]:
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(folder)
        building = folder.parent / f".{folder.name}.building-{os.getpid()}"
        building.mkdir()
    except OSError as error:
        raise storage_error(folder, error) from error
    try:
        yield building
        _replace(building, folder)
    except OSError as error:
        raise storage_error(folder, error) from error
    finally:
        shutil.rmtree(building, ignore_errors=True)


def storage_error(folder: Path, error: OSError) -> StorageError:
    """Say what the file system refused."""
    where = error.filename or folder
    return StorageError(
        f"{where}: writing the bundle failed: {error.strerror or error}. "
        f"Nothing was changed in {folder}. Free space or choose another --out."
    )


def seal(building: Path, manifest: Manifest) -> None:
    """Hash and sync every file, then write the manifest."""
    files = {}
    for path in sorted(building.iterdir()):
        files[path.name] = FileRecord(size=path.stat().st_size, sha256=sha256_of(path))
        _sync(path)
    sealed = manifest.model_copy(update={"files": files})
    path = building / MANIFEST
    path.write_text(sealed.model_dump_json(indent=1) + "\n")
    _sync(path)
    _sync(building)


def _remove_abandoned(folder: Path) -> None:
    """Remove what builds that were killed left beside `folder`."""
    for path in folder.parent.glob(f".{folder.name}.building-*"):
        if not Path(f"/proc/{path.name.rpartition('-')[2]}").exists():
            shutil.rmtree(path)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


AT_FDCWD = -100
RENAME_EXCHANGE = 2


def _replace(building: Path, folder: Path) -> None:
    """Put `building` in the place of `folder`, atomically where the kernel can exchange names."""
    if not folder.exists():
        building.rename(folder)
    elif not _exchange(building, folder):
        retired = building.with_name(f"{building.name}.old")
        folder.rename(retired)
        building.rename(folder)
        shutil.rmtree(retired)
    _sync(folder.parent)


def _exchange(a: Path, b: Path) -> bool:
    """Swap two names in one step; false where the platform or file system cannot."""
    rename = getattr(ctypes.CDLL(None), "renameat2", None)
    if rename is None:
        return False
    result = rename(AT_FDCWD, os.fsencode(a), AT_FDCWD, os.fsencode(b), RENAME_EXCHANGE)
    return bool(result == 0)
