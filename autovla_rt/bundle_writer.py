"""Folders that appear or change at once: engine bundles and exports.

A folder is written beside its destination and then takes its name. A build in progress holds a lock
on its folder, which the kernel releases however the process ends, so the next build can tell an
abandoned folder from one that is being written. A second lock, on the parent folder, is held for
the moments of checking and renaming.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import json
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from autovla_rt.bundle import MANIFEST, FileRecord, Manifest, manifest_seal, sha256_of
from autovla_rt.config import LATENCY_FOLDER, PLANS_FOLDER
from autovla_rt.errors import StorageError

RETIRED = "retired"
LISTED = 5


@contextlib.contextmanager
def bundle_writer(folder: Path) -> Iterator[Path]:
    """Yield an empty folder beside `folder` that replaces it when the block ends without error.

    Call `seal` inside the block. The old bundle stays loadable until the exchange, and whatever
    fails, a process killed or a disk full, leaves it as it was. Of several writers the last wins.

    Raises:
        StorageError: `folder` is something else than a bundle or holds more than it, or the file
            system refused.
    """
    with _replacing(folder, _require_bundle) as building:
        yield building


@contextlib.contextmanager
def folder_writer(folder: Path) -> Iterator[Path]:
    """Yield an empty folder that becomes `folder`, which must be new or empty, when all went well.

    Raises:
        StorageError: there is something in `folder`, or the file system refused.
    """
    with _replacing(folder, _require_empty) as building:
        yield building


def seal(building: Path, manifest: Manifest) -> None:
    """Hash and sync every file, then write the manifest."""
    files = {}
    for path in sorted(building.iterdir()):
        files[path.name] = FileRecord(size=path.stat().st_size, sha256=sha256_of(path))
        _sync(path)
    content = manifest.model_copy(update={"files": files}).model_dump(mode="json")
    content["seal"] = manifest_seal(content)
    path = building / MANIFEST
    path.write_text(json.dumps(content, indent=1) + "\n")
    _sync(path)
    _sync(building)


def storage_error(folder: Path, error: OSError) -> StorageError:
    """Say what the file system refused."""
    return StorageError(
        f"{folder}: writing failed: {error.strerror or error}"
        f"{f' ({error.filename})' if error.filename else ''}. What was there is unchanged.\n"
        "Free space or permit writing, or choose another --out."
    )


def _require_bundle(folder: Path) -> None:
    """Refuse to replace what is not wholly a bundle of ours: it may be the user's only copy."""
    names = _names(folder)
    if not names:
        return
    if MANIFEST not in names:
        raise StorageError(
            f"{folder}: expected an engine bundle or a new folder, got a folder without "
            f"{MANIFEST}. It was not touched: choose another --out."
        )
    if foreign := sorted(names - _bundle_files(folder / MANIFEST)):
        listed = ", ".join(foreign[:LISTED]) + (", ..." if len(foreign) > LISTED else "")
        raise StorageError(
            f"{folder}: expected nothing but an engine bundle, got {listed} beside it. It was not "
            "touched: move what you need elsewhere and delete the folder, or choose another --out."
        )


def _require_empty(folder: Path) -> None:
    if _names(folder):
        raise StorageError(
            f"{folder}: expected a new or empty folder. It was not touched: choose another --out."
        )


def _names(folder: Path) -> set[str]:
    if folder.exists() and not folder.is_dir():
        raise StorageError(
            f"{folder}: expected a folder, got a file. It was not touched: choose another --out."
        )
    return {path.name for path in folder.iterdir()} if folder.exists() else set()


def _bundle_files(manifest: Path) -> set[str]:
    """Names that a manifest of any version lists, its own, and what was made of or with a bundle.

    None where the manifest cannot be read.
    """
    try:
        content = json.loads(manifest.read_bytes())
    except (ValueError, RecursionError):
        return set()
    if not isinstance(content, dict) or not isinstance(content.get("files"), dict):
        return set()
    return {MANIFEST, LATENCY_FOLDER, PLANS_FOLDER, *content["files"]}


@contextlib.contextmanager
def _replacing(folder: Path, require: Callable[[Path], None]) -> Iterator[Path]:
    """Build beside `folder`; `require` says what may be replaced, before the work and after it."""
    target = folder.resolve()  # a link stays one: what it points to is replaced
    building = target.with_name(f"{_prefix(target)}{os.getpid()}-{secrets.token_hex(4)}")
    lock = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with _only_writer(target.parent):
            require(target)
            _remove_abandoned(target)
            building.mkdir()
            lock = _locked(building)
        yield building
        with _only_writer(target.parent):
            require(target)
            _replace(building, target)
    except OSError as error:
        raise storage_error(folder, error) from error
    finally:
        shutil.rmtree(building, ignore_errors=True)
        if lock is not None:
            os.close(lock)


def _prefix(target: Path) -> str:
    return f".{target.name}.building-"


def _locked(folder: Path, *, wait: bool = True) -> int:
    """Lock a folder; returns the descriptor that holds the lock.

    Raises:
        BlockingIOError: another process holds it, and we do not wait.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


@contextlib.contextmanager
def _only_writer(parent: Path) -> Iterator[None]:
    """Keep other builds from looking or renaming here for the moments in which we do."""
    descriptor = _locked(parent)
    try:
        yield
    finally:
        os.close(descriptor)


def _remove_abandoned(target: Path) -> None:
    """Remove what builds that were killed left beside `target`."""
    for path in target.parent.iterdir():
        if path.name.startswith(_prefix(target)) and path.is_dir():
            _remove_unlocked(path, target)


def _remove_unlocked(path: Path, target: Path) -> None:
    try:
        descriptor = _locked(path, wait=False)
    except (BlockingIOError, FileNotFoundError):
        return  # in progress, or just being removed by the build that made it
    try:
        if path.name.endswith(RETIRED) and not target.exists():
            path.rename(target)  # killed between the two renames of `_replace`
        else:
            shutil.rmtree(path, ignore_errors=True)
    finally:
        os.close(descriptor)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


AT_FDCWD = -100
RENAME_EXCHANGE = 2


def _replace(building: Path, target: Path) -> None:
    """Put `building` in the place of `target`, atomically where the kernel can exchange names."""
    if not _exchange(building, target) and not _renamed(building, target):
        retired = building.with_name(f"{building.name}.{RETIRED}")
        target.rename(retired)
        building.rename(target)
        shutil.rmtree(retired)
    _sync(target.parent)


def _renamed(building: Path, target: Path) -> bool:
    """Rename to a new or empty folder; false where something is in it."""
    try:
        building.rename(target)
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
            return False
        raise
    return True


def _exchange(a: Path, b: Path) -> bool:
    """Swap two names in one step; false where one is missing or the system cannot."""
    rename = getattr(ctypes.CDLL(None), "renameat2", None)
    if rename is None:
        return False
    result = rename(AT_FDCWD, os.fsencode(a), AT_FDCWD, os.fsencode(b), RENAME_EXCHANGE)
    return bool(result == 0)
