"""Power, clocks, temperatures and power mode of a Jetson, from NVIDIA's tegrastats and nvpmodel.

Their output differs by JetPack and board; the forms that are read are those of JetPack 4 to 7.2
(jetson_stats issues 187, 624, pull request 894). Not run on a board here.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import numpy as np

INTERVAL_MS = 100
STOP_SECONDS = 5.0

_RAM = re.compile(r"\bRAM (\d+)/(\d+)MB")
_CPU = re.compile(r"\bCPU \[([^\]]*)\]")
_CORE = re.compile(r"(\d+)%@(\d+)")
_GPU_LOAD = re.compile(r"\bGR3D_FREQ (\d+)%")
_GPU_CLOCK = re.compile(r"\bGR3D_FREQ (?:\d+%)?@\[?(\d+)")
_MEMORY_CLOCK = re.compile(r"\bEMC_FREQ (?:\d+%)?@(\d+)")
_TEMPERATURE = re.compile(r"\b(\w+)@(-?[\d.]+)C\b")
_POWER = re.compile(r"\b((?:VDD|VIN|POM)_\w+) (\d+)(?:mW)?/\d+")


@dataclass(frozen=True)
class BoardSample:
    """One line of tegrastats; what a board does not print is missing.

    Attributes:
        values: By name: ram_mb, cpu_percent (mean of the cores that are on), cpu_mhz (fastest
            core), gpu_percent, gpu_mhz (first GPC), emc_mhz.
        celsius: By sensor.
        milliwatts: By rail, at this moment.
    """

    values: dict[str, float]
    celsius: dict[str, float]
    milliwatts: dict[str, float]


def read_line(line: str) -> BoardSample:
    """Read a line of tegrastats.

    Raises:
        ValueError: it is no such line.
    """
    ram = _RAM.search(line)
    if ram is None:
        raise ValueError(f"expected a line of tegrastats with RAM used/totalMB, got {line!r}")
    values = {"ram_mb": float(ram[1])}
    cores = [(float(load), float(clock)) for load, clock in _cores(line)]
    if cores:
        values["cpu_percent"] = float(np.mean([load for load, _ in cores]))
        values["cpu_mhz"] = max(clock for _, clock in cores)
    for name, pattern in (
        ("gpu_percent", _GPU_LOAD),
        ("gpu_mhz", _GPU_CLOCK),
        ("emc_mhz", _MEMORY_CLOCK),
    ):
        if found := pattern.search(line):
            values[name] = float(found[1])
    return BoardSample(
        values,
        {name: float(degrees) for name, degrees in _TEMPERATURE.findall(line)},
        {rail: float(milliwatts) for rail, milliwatts in _POWER.findall(line)},
    )


def _cores(line: str) -> list[tuple[str, str]]:
    cpu = _CPU.search(line)
    return _CORE.findall(cpu[1]) if cpu else []


def summarise(samples: Sequence[BoardSample]) -> dict[str, Any]:
    """Sum up: (least, mean, greatest) of every value, sensor and rail that was printed."""
    return {
        part: {
            name: _range([getattr(s, part)[name] for s in samples if name in getattr(s, part)])
            for name in dict.fromkeys(n for s in samples for n in getattr(s, part))
        }
        for part in ("values", "celsius", "milliwatts")
    }


def _range(values: Sequence[float]) -> tuple[float, float, float]:
    return min(values), float(np.mean(values)), max(values)


class BoardMonitor:
    """Runs tegrastats while its body runs.

    Attributes:
        report: After the body: `summarise`d samples with their number and the power mode; None on a
            machine without tegrastats; {"error": ...} where it ran but could not be read.
    """

    def __init__(self) -> None:
        self.report: dict[str, Any] | None = None
        self._tool = shutil.which("tegrastats")

    def __enter__(self) -> BoardMonitor:
        """Start it."""
        if self._tool is not None:
            # A file, because a pipe that nobody reads stops the writer once it is full.
            self._output = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")
            self._process = subprocess.Popen(
                [self._tool, "--interval", str(INTERVAL_MS)],
                stdout=self._output,
                stderr=subprocess.STDOUT,
            )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Stop it, and read what it printed."""
        if self._tool is None:
            return
        self._process.terminate()
        try:
            self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        with self._output as file:
            file.seek(0)
            lines = file.read().splitlines()
        self.report = _report(lines)


def _report(lines: Sequence[str]) -> dict[str, Any]:
    try:
        samples = [read_line(line) for line in lines if line.strip()]
    except ValueError as error:
        return {"error": str(error)}
    if not samples:
        return {"error": f"tegrastats printed nothing in {INTERVAL_MS} ms and more"}
    return {"samples": len(samples), "power_mode": power_mode(), **summarise(samples)}


def power_mode() -> str:
    """Return what `nvpmodel -q` says, in one line, or why it says nothing."""
    tool = shutil.which("nvpmodel")
    if tool is None:
        return "unknown: nvpmodel is not installed"
    done = subprocess.run([tool, "-q"], capture_output=True, text=True, check=False)
    said = ", ".join(line.strip() for line in (done.stdout + done.stderr).splitlines() if line)
    return said if done.returncode == 0 else f"unknown: {said} (try sudo)"
