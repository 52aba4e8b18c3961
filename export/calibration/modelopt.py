"""Letting NVIDIA ModelOpt search how channels are rescaled, in its own environment.

It wants torch and whole layers in memory, so it is a process of its own that gets one group of
layers at a time: their weights, stacked, since they share a scale, and the rows kept of their
input. What it cannot do stays here: heads of 150,000 rows, reading a checkpoint in pieces, folding.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from autovla_rt.errors import CalibrationError, DependencyError
from autovla_rt.export.calibration.groups import Group
from autovla_rt.export.calibration.search import balanced, by_row
from autovla_rt.export.calibration.statistics import LayerInput
from autovla_rt.export.weight_source import HEAD, WeightSource, matrix_chunks

Float = NDArray[np.float32]

WORKER = Path(__file__).with_name("modelopt_worker.py")

RELEASE = "0.47"
"""The release whose configurations and results this was compared with."""

VERSION_CODE = "from importlib.metadata import version; print(version('nvidia-modelopt'))"

ISOLATED = "-I"
"""Python's option that keeps the worker's own folder, whose modules have names such as modelopt and
statistics, and what PYTHONPATH says out of what it imports."""

LAST_LINES = 6
"""Of what a failed process said."""


class ModelOpt:
    """A running process of ModelOpt.

    Args:
        python: Python of an environment with nvidia-modelopt and torch.
        folder: Where layers are handed over.
        int4_block: Inputs that share an int4 scale.

    Raises:
        DependencyError: it does not start there.
    """

    def __init__(self, python: Path, folder: Path, int4_block: int) -> None:
        self._python, self._folder, self._block = python, folder, int4_block
        self._said = (folder / "stderr").open("w+", encoding="utf-8")
        self._process = subprocess.Popen(
            [python, ISOLATED, WORKER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,
            text=True,
        )
        if self._answer() is None:
            raise _missing(python, self._last_lines())

    def rescaling(self, source: WeightSource, group: Group, seen: LayerInput, method: str) -> Float:
        """Return what to divide each row of a group's writers by, [largest row + 1].

        Args:
            source: The checkpoint.
            group: The layers; rows that several channels share get the largest of their scales.
            seen: Statistics of their input.
            method: int8_sq or int4_awq, with ModelOpt's own strength or search of it.

        Raises:
            CalibrationError: ModelOpt failed.
        """
        rows = seen.rows
        if method == "int8_sq":  # looks at the largest of each channel alone
            rows = np.concatenate([rows, seen.largest[None]])
        request: dict[str, Any] = {"method": method, "block": self._block}
        stacked = np.concatenate(list(matrix_chunks(source, group.readers)))
        for key, array in {"weights": stacked, "rows": rows}.items():
            path = self._folder / f"{key}.npy"
            np.save(path, array)
            request[key] = str(path)
        request["answer"] = str(self._folder / "answer.npy")
        with contextlib.suppress(BrokenPipeError):  # it ended, and says why
            self._pipe(self._process.stdin).write(json.dumps(request) + "\n")
            self._pipe(self._process.stdin).flush()
        if self._answer() is None:
            raise CalibrationError(
                f"{self._python}: expected ModelOpt to quantize "
                f"{' + '.join(group.readers)} {stacked.shape}, got:\n{self._last_lines()}\n"
                "Leave --modelopt out to search without it."
            )
        scale = np.load(self._folder / "answer.npy")
        return balanced(by_row(scale, group.channels, int(group.channels.max()) + 1))

    def close(self) -> None:
        """End the process."""
        with contextlib.suppress(BrokenPipeError):
            self._pipe(self._process.stdin).close()
        self._process.wait()
        self._pipe(self._process.stdout).close()
        self._said.close()

    def _answer(self) -> dict[str, Any] | None:
        line = self._pipe(self._process.stdout).readline()
        return json.loads(line) if line else None

    def _last_lines(self) -> str:
        self._process.wait()
        self._said.seek(0)
        return "\n".join(self._said.read().splitlines()[-LAST_LINES:])

    @staticmethod
    def _pipe(pipe: IO[str] | None) -> IO[str]:
        assert pipe is not None
        return pipe


def is_searched(group: Group) -> bool:
    """Whether ModelOpt is asked: not for the heads, which do not fit it in one piece."""
    return HEAD not in group.readers


def modelopt_version(python: Path) -> str:
    """Return the version of ModelOpt in a Python's environment.

    Raises:
        DependencyError: there is none, or of another release.
    """
    try:
        done = subprocess.run(
            [python, ISOLATED, "-c", VERSION_CODE], capture_output=True, text=True
        )
    except OSError as error:
        raise _missing(python, str(error.strerror)) from error
    version = done.stdout.strip()
    if done.returncode or not version.startswith(f"{RELEASE}."):
        raise _missing(python, version or "\n".join(done.stderr.splitlines()[-1:]))
    return version


def _missing(python: Path, got: str) -> DependencyError:
    return DependencyError(
        f"--modelopt {python}: expected the Python of an environment with nvidia-modelopt "
        f"{RELEASE} and torch, got: {got}\nIn a checkout, make .venv-modelopt/stamp makes "
        ".venv-modelopt/bin/python."
    )


@contextlib.contextmanager
def modelopt(python: Path | None, int4_block: int) -> Iterator[ModelOpt | None]:
    """Run ModelOpt while scales are searched; None without a Python for it.

    Raises:
        DependencyError: it does not start there.
    """
    if python is None:
        yield None
        return
    with (
        tempfile.TemporaryDirectory(prefix="modelopt-") as folder,
        contextlib.closing(ModelOpt(python, Path(folder), int4_block)) as running,
    ):
        yield running
