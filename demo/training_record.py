"""Which code made a checkpoint, when and with what, and how a training command ends."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

from autovla_rt.demo.training_state import LOG_FILE
from autovla_rt.errors import AutovlaError
from autovla_rt.output_file import make_folder, write_file

RECORD_FILE = "training.json"
RUNS_FILE = "runs.jsonl"


def note_run(training: Path) -> None:
    """Append to the list of runs which code goes on with the training, and when.

    Raises:
        StorageError: the file system refused.
    """
    make_folder(training)
    run = {"started": time.strftime("%Y-%m-%dT%H:%M:%S%z"), "commit": commit()}
    with (training / RUNS_FILE).open("a", encoding="utf-8") as file:
        file.write(json.dumps(run) + "\n")


def provenance(training: Path, *libraries: str) -> dict[str, Any]:
    """Return the runs of a training, versions of libraries, cores, and the log's last line."""
    log_file = training / LOG_FILE
    log = log_file.read_text(encoding="utf-8").splitlines() if log_file.exists() else []
    runs = (training / RUNS_FILE).read_text(encoding="utf-8").splitlines()
    return {
        "runs": [json.loads(line) for line in runs],
        "libraries": {name: version(name) for name in libraries},
        "cores": os.cpu_count(),
        "last": json.loads(log[-1]) if log else None,
    }


def write_record(checkpoint: Path, record: dict[str, Any]) -> None:
    """Write what a checkpoint says about its training.

    Raises:
        StorageError: the file system refused.
    """
    write_file(checkpoint / RECORD_FILE, (json.dumps(record, indent=1) + "\n").encode())


def commit() -> str:
    """Return the commit of the checkout that this file lies in; "unknown" outside of one."""
    words = ["git", "-C", str(Path(__file__).resolve().parent), "describe", "--always", "--dirty"]
    try:
        done = subprocess.run([*words, "--abbrev=40"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return done.stdout.strip()


def conclude(training: Callable[[], bool], out: Path, success: str) -> None:
    """Train, and say where it ended; an expected error is one line and its exit code."""
    try:
        done = training()
    except AutovlaError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    ended = success if done else "stopped; run the same command again to go on"
    print(f"{out}: {ended}")
