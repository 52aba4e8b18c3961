"""Graphs and checkpoints of the miniature for NVIDIA's engines, taken by NVIDIA's own compiler.

    python bench/nvidia_graphs.py OUT

Calibrates the miniature on its tracked scenes, exports the standard dialect in every precision, and
has TensorRT for RTX parse and compile each graph: built, not executed. Then
writes the unified checkpoint of each precision that has one.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from export_3b import REPO
from quantization import command, model_options

SCRIPT = REPO / "tests" / "parity" / "rtx_build.py"
GRAPHS = ("vision_8x14.onnx", "language.onnx", "text_head.onnx")

NEW, OLD = "10.16", "10.3"
BUILDS = (
    ("fp16", NEW, 86),
    ("int8_wo", NEW, 86),
    ("int8", NEW, 86),
    ("int8_sq", NEW, 86),
    ("int8_sq/int4_awq", NEW, 86),
    ("fp16/int4_awq", NEW, 89),
    ("fp8", NEW, 86),
    ("fp8", NEW, 89),
    ("fp8", NEW, 120),
    ("fp16", OLD, 86),
    ("int8_sq", OLD, 86),
    ("fp16/int4_awq", OLD, 86),
    ("fp8", OLD, 89),
)
"""Precision, TensorRT that the graphs are for, compute capability that they are compiled for."""

CHECKPOINTS = ("fp16", "int8_sq", "int8_sq/int8_sq", "int4_awq", "int8_sq/int4_awq", "fp8")
UNCALIBRATED = ("fp16", "int8_wo")


def options(out: Path, precision: str) -> str:
    """Return the options that an export of the miniature needs."""
    calibration = "" if precision in UNCALIBRATED else f"--calibration {out}/calibration"
    return f"{model_options(out, 'plain')} {calibration} --precision {precision}"


def graphs(out: Path, precision: str, tensorrt: str) -> Path:
    """Export the graphs, for a device that may compute in all precisions; returns their folder."""
    folder = out / f"{precision.replace('/', '-')}-{tensorrt}"
    if not folder.exists():
        words = f"--target rtx-sm89 --tensorrt {tensorrt} --out {folder}"
        command(f"export all {options(out, precision)} {words}")
    return folder


def row(out: Path, precision: str, tensorrt: str, sm: int) -> str:
    """Return a line of the table: layers, seconds and megabytes of each graph, or what was said."""
    folder = graphs(out, precision, tensorrt)
    words = [sys.executable, "-P", SCRIPT, REPO, sm, *(folder / name for name in GRAPHS)]
    done = subprocess.run([*map(str, words)], capture_output=True, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout)
    cells = [precision, tensorrt, f"{sm // 10}.{sm % 10}"]
    for of in found.values():
        if "error" in of:
            cells.append("refused: " + of["error"].partition("It said:\n")[2].splitlines()[0])
        else:
            megabytes = of["bytes"] / 1e6
            cells.append(f"{of['layers']} / {of['seconds']:.1f} / {megabytes:.1f}")
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """Calibrate and export what is missing, compile, print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    scenes = REPO / "calib_data" / "miniature"
    if not (out / "calibration").exists():
        given = f"--scenes {scenes}/scenes --sensor-root {scenes}/sensors --count 16"
        command(f"calibrate {model_options(out, 'plain')} {given} --out {out}/calibration")
    print("| Precision | For TensorRT | SM | Vision | Language | Text head |")
    print("|---|---|---|---|---|---|")
    for build in BUILDS:
        print(row(out, *build), flush=True)
    print("\n| Unified checkpoint | MB |\n|---|---|")
    for precision in CHECKPOINTS:
        folder = out / f"checkpoint-{precision.replace('/', '-')}"
        target = "agx-thor" if precision == "fp8" else "agx-orin-64"
        if not folder.exists():
            words = f"export checkpoint {options(out, precision)} --target {target}"
            command(f"{words} --out {folder}")
        size = sum(path.stat().st_size for path in folder.glob("*.safetensors")) / 1e6
        print(f"| {precision} | {size:.1f} |", flush=True)


if __name__ == "__main__":
    main()
