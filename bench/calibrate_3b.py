"""What calibrating the real geometry takes: time, memory, disk; random weights, frames of noise.

    python bench/calibrate_3b.py WORK [--scenes 8] [--precision int4_awq]

Also builds an engine of the calibration, for the search of scales. WORK gets 10 GB and is emptied.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

from export_3b import REPO, measure, write_base, write_checkpoint
from noise import HEIGHT, WIDTH
from quantization import write_placeholders


def main() -> None:
    """Read the arguments, calibrate, build, print JSON lines."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("work", type=Path)
    parser.add_argument("--scenes", type=int, default=8)
    parser.add_argument("--precision", default="int4_awq")
    given = parser.parse_args()
    given.work.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=given.work) as work:
        folder = Path(work)
        write_base(folder, REPO / "../shared/qwen2.5-vl-processor")
        checkpoint = write_checkpoint(folder, "hf")
        write_placeholders(folder / "noise", given.scenes, (WIDTH, HEIGHT))
        model = (
            f"--checkpoint {checkpoint} --config {folder}/config.yaml "
            f"--recipe {REPO}/demo/recipe.toml"
        )
        scenes = f"--scenes {folder}/noise/scenes --sensor-root {folder}/noise/sensors"
        for name, words in {
            "calibrate": f"{scenes} --count {given.scenes} --out {folder}/calibration",
            "build": (
                f"--calibration {folder}/calibration --precision {given.precision} --target x86 "
                f"--out {folder}/engine"
            ),
        }.items():
            figures, _, _ = measure(f"{name} {model} {words}".split())
            print(json.dumps({"command": name, "scenes": given.scenes, **figures}), flush=True)
        size = sum(path.stat().st_size for path in (folder / "calibration").iterdir())
        print(json.dumps({"calibration_gib": size / 2**30}))


if __name__ == "__main__":
    main()
