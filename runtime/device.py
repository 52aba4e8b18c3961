"""What machine this is."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

from autovla_rt.onnx_runtime import ort

BOARD, CPUINFO = Path("/proc/device-tree/model"), Path("/proc/cpuinfo")


def describe_device() -> dict[str, Any]:
    """Say what machine this is."""
    return {
        "name": device_name(),
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "system": platform.platform(),
        "onnxruntime": ort.__version__,
    }


def device_name() -> str:
    """Return the board's name where it has one (Jetson), else the CPU's."""
    if BOARD.exists():
        return BOARD.read_text(errors="replace").strip("\0\n ")
    lines = CPUINFO.read_text().splitlines() if CPUINFO.exists() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())
