"""The file from which training goes on: complete, of the same settings, or refused."""

from __future__ import annotations

import hashlib
import io
import json
from pathlib import Path
from typing import Any

import torch

from autovla_rt.errors import CheckpointError
from autovla_rt.output_file import write_file

STATE_FILE = "state.pt"
LOG_FILE = "log.jsonl"
_DIGEST_SIZE = hashlib.sha256().digest_size


def write_state(path: Path, state: dict[str, Any]) -> None:
    """Write tensors and plain values at once: a power cut leaves the old or the new file.

    The file is the sha256 of what follows, then what `torch.save` writes.

    Raises:
        StorageError: the file system refused; an existing file stays as it was.
    """
    buffer = io.BytesIO()
    torch.save(state, buffer)
    content = buffer.getvalue()
    write_file(path, hashlib.sha256(content).digest() + content)


def read_state(path: Path, fingerprint: str) -> dict[str, Any]:
    """Read what `write_state` wrote; nothing in the file is executed.

    `fingerprint` is what the state must hold under that name.

    Raises:
        CheckpointError: the file is unreadable, damaged or belongs to other settings.
    """
    try:
        stored = path.read_bytes()
    except OSError as error:
        raise CheckpointError(
            f"{path}: the training state cannot be read: {error.strerror}.\n"
            "Give permission to read it, or train into an empty folder."
        ) from error
    digest, content = stored[:_DIGEST_SIZE], stored[_DIGEST_SIZE:]
    if hashlib.sha256(content).digest() != digest:
        raise CheckpointError(
            f"{path}: the training state is damaged: its checksum does not match its "
            f"{len(content)} bytes.\nRestore a copy of it, or delete it to start again from step 0."
        )
    state: dict[str, Any] = torch.load(io.BytesIO(content), weights_only=True)
    if state["fingerprint"] != fingerprint:
        raise CheckpointError(
            f"{path}: the training state belongs to other settings "
            f"(fingerprint {state['fingerprint'][:12]}, these have {fingerprint[:12]}).\n"
            "Train with the settings that it was started with, or into another folder."
        )
    return state


def drop_log_after(path: Path, step: int) -> None:
    """Keep the log's whole lines up to `step`; without a log nothing happens.

    Raises:
        StorageError: the file system refused; the log stays as it was.
    """
    if path.exists():
        kept = [line for line in path.read_bytes().splitlines(True) if _step_of(line) <= step]
        write_file(path, b"".join(kept))


def _step_of(line: bytes) -> float:
    """The step of a line of the log; infinite for one that a crash cut short."""
    try:
        return int(json.loads(line)["step"]) if line.endswith(b"\n") else float("inf")
    except (ValueError, KeyError, TypeError):
        return float("inf")
