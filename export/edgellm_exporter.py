"""NVIDIA's exporter of TensorRT Edge-LLM, run in the environment that it is installed in."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from autovla_rt.edgellm import VERSION
from autovla_rt.errors import CheckpointError, DependencyError

SCRIPT = "tensorrt-edgellm-export"

MODULE = "tensorrt_edgellm.scripts.export"

GRAPHS = ("llm", "visual")
"""Folders that the exporter makes, each with a model.onnx."""

SHOWN_LINES = 15

PIP_LINE = f"pip install 'tensorrt-edgellm[export,tools]=={VERSION}' torch==2.13.0"


def exporter_command(given: Path) -> list[str]:
    """Return how an exporter is called that is given as its script or its environment's python.

    Raises:
        DependencyError: there is no such file, or it is something else.
    """
    if not given.is_file():
        raise DependencyError(
            f"--exporter {given}: no such file. Expected {SCRIPT}, or the python of the "
            f"environment it is installed in.\nInstall it in an environment of its own: {PIP_LINE}"
        )
    if given.name.startswith("python"):
        return [str(given.absolute()), "-m", MODULE]
    if given.name != SCRIPT:
        raise DependencyError(f"--exporter {given}: expected {SCRIPT} or a python.")
    return [str(given.absolute())]


def export_graphs(command: list[str], checkpoint: Path, out: Path, sm: int) -> None:
    """Let NVIDIA's exporter write `out`/llm and `out`/visual.

    Args:
        command: As `exporter_command` returns it.
        checkpoint: A unified checkpoint.
        out: Folder to write.
        sm: Compute capability of the device, without the dot.

    Raises:
        CheckpointError: the exporter failed, with the last lines that it wrote.
        DependencyError: it cannot be run at all.
    """
    # Ours on PYTHONPATH would come before the modules of its environment.
    environment = {name: of for name, of in os.environ.items() if name != "PYTHONPATH"}
    words = [*command, str(checkpoint.absolute()), str(out.absolute()), "--target-sm", str(sm)]
    try:
        done = subprocess.run(
            words,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            env=environment,
            cwd=checkpoint.parent,
            check=False,
        )
    except OSError as error:
        raise DependencyError(f"{command[0]}: cannot be run: {error}.") from error
    missing = [part for part in GRAPHS if not (out / part / "model.onnx").is_file()]
    if done.returncode or missing:
        said = "\n".join(done.stdout.splitlines()[-SHOWN_LINES:])
        raise CheckpointError(
            f"{command[0]}: expected ONNX of {' and '.join(GRAPHS)}, got exit code "
            f"{done.returncode} and nothing for {', '.join(missing) or 'none'}. It said last:\n"
            f"{said}\nNothing was written. Without --exporter the checkpoint is written alone."
        )
