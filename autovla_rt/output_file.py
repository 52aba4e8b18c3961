"""Files that a command writes for its user: complete or not at all."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from autovla_rt.errors import StorageError


def write_file(path: Path, content: bytes) -> None:
    """Write a file at once: readers and a power cut see the old or the new one.

    What is no regular file (`/dev/stdout`, a pipe) is written to, never replaced.

    Raises:
        StorageError: the file system refused; an existing file stays as it was.
    """
    try:
        if path.exists() and not path.is_file():
            path.write_bytes(content)
        else:
            _replace(path.resolve(), content)  # a link stays one
    except OSError as error:
        raise _refusal(path, error.strerror or str(error)) from error


def require_writable(path: Path) -> None:
    """Find out before any work whether `write_file` can succeed.

    Raises:
        StorageError: `path` is a folder, or its folder is missing or closed to us.
    """
    if path.is_dir():
        raise _refusal(path, "it is a folder")
    folder = path.resolve().parent
    if not path.exists() and not folder.is_dir():
        raise _refusal(path, f"there is no folder {folder}")
    if not os.access(path if path.exists() else folder, os.W_OK):
        raise _refusal(path, "permission denied")


def make_folder(path: Path) -> None:
    """Make a folder and those above it, where they are missing.

    Raises:
        StorageError: there is a file in its place, or the file system refused.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(
            f"{path}: cannot be made a folder: {error.strerror or error}.\n"
            "Give the path of a folder, new or existing, that you may write to."
        ) from error


def _replace(path: Path, content: bytes) -> None:
    partial = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.partial")
    try:
        with partial.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _refusal(path: Path, reason: str) -> StorageError:
    return StorageError(
        f"{path}: cannot be written: {reason}.\n"
        "Give the path of a file in an existing folder that you may write to, with space left."
    )
