"""OpenVINO's files: the language model in int4 by optimum-intel, the vision tower in int8 by NNCF.

.venv-bench/bin/python bench/peers/openvino_files.py WORK
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import nncf
import numpy as np
import openvino as ov
import torch
from vision_blocks import HIDDEN, ROWS, WIDTH, load

GROUP = 128


def export_language(work: Path) -> None:
    """Export with the recommended tool; int4 everywhere, the head and the embedding in int8."""
    command = Path(sys.executable).with_name("optimum-cli")
    subprocess.run(
        [
            command,
            "export",
            "openvino",
            "--model",
            work / "language",
            "--task",
            "text-generation-with-past",
            "--weight-format",
            "int4",
            "--sym",
            "--group-size",
            str(GROUP),
            "--ratio",
            "1.0",
            work / "openvino-language",
        ],
        check=True,
    )


def export_vision(work: Path) -> None:
    """Trace the tower at its fixed size, in parts, and quantize it with activations, statically."""
    torch.manual_seed(0)
    for index, part in enumerate(load(work / "base").parts()):
        x = torch.randn(ROWS, HIDDEN if index else WIDTH)
        with torch.no_grad():
            converted = ov.convert_model(part, example_input=x, input=[tuple(x.shape)])
        quantized = nncf.quantize(
            converted,
            nncf.Dataset([np.asarray(x)]),
            model_type=nncf.ModelType.TRANSFORMER,
            subset_size=1,
        )
        ov.save_model(quantized, work / f"openvino-vision-{index}.xml", compress_to_fp16=False)


def main() -> None:
    """Write both."""
    work = Path(sys.argv[1])
    if not (work / "openvino-language").exists():
        export_language(work)
    export_vision(work)


if __name__ == "__main__":
    main()
