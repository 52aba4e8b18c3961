"""Export and plan at the real 3B geometry with random weights: seconds and peak memory.

Writes checkpoints and bundles (about 40 GB) under a temporary folder and removes them (`--keep`
leaves the last bundle). Every measured command is the command line in a process of its own; VmHWM
(all resident pages, those of mapped files too) and the largest RssAnon are read from /proc while it
runs.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np
from PIL import Image
from random_checkpoint import GEOMETRY_3B, write_config, write_hf_folder, write_lightning
from safetensors.numpy import save_file
from tokenizers import AddedToken, Tokenizer

from autovla_rt.config import CAMERAS, FRAMES_PER_CAMERA
from autovla_rt.kernels.contour import pose_to_corners

REPO = Path(__file__).resolve().parents[1]
CLI = (sys.executable, "-m", "autovla_rt")
POLL_SECONDS = 0.02
NUM_ACTIONS = 2048
CONFIG = """
model:
  use_cot: true
  pretrained_model_path: base
  codebook_cache_path: codebook.safetensors
  trajectory: {num_poses: 10, interval_length: 0.5, time_horizon: 5.0}
  tokens: {action_start_id: 151665, assistant_id: [151644, 77091]}
  video: {min_pixels: 109760, max_pixels: 109760}
"""


def main() -> None:
    """Run every export and plan, print JSON lines and a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--processor", type=Path, default=REPO / "../shared/qwen2.5-vl-processor")
    parser.add_argument("--work", type=Path, help="parent of the temporary folder")
    parser.add_argument("--precision", nargs="*", default=["int4", "int8"])
    parser.add_argument("--checkpoint", nargs="*", default=["hf", "lightning"])
    parser.add_argument("--target", default="cpu", help="cpu (ONNX Runtime) or x86 (OpenVINO)")
    parser.add_argument("--plans", type=int, default=3, help="measured plans; 0 for none")
    parser.add_argument(
        "--keep", type=Path, help="leave the last bundle here, for other benchmarks"
    )
    arguments = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory(dir=arguments.work) as work:
        folder = Path(work)
        write_base(folder, arguments.processor)
        write_frames(folder / "frames")
        for kind in arguments.checkpoint:
            checkpoint = write_checkpoint(folder, kind)
            for precision in arguments.precision:
                row = {"checkpoint": kind, "precision": precision}
                row |= measure_build(folder, checkpoint, precision, arguments.target)
                if arguments.plans:
                    row |= measure_plan(folder / "engine", folder / "frames", arguments.plans)
                print(json.dumps(row), flush=True)
                rows.append(row)
            remove(checkpoint)
        if arguments.keep is not None:
            shutil.move(folder / "engine", arguments.keep)
    print(table(rows))


def write_base(folder: Path, processor: Path) -> None:
    """Write what lies beside the weights: config, tokenizer, codebook, base folder."""
    import lzma

    base = folder / "base"
    base.mkdir()
    packed = processor / "tokenizer.json.xz"
    tokenizer = Tokenizer.from_str(lzma.decompress(packed.read_bytes()).decode())
    tokenizer.add_tokens([AddedToken(f"<action_{i}>", special=False) for i in range(NUM_ACTIONS)])
    tokenizer.save(str(base / "tokenizer.json"))
    settings = processor / "preprocessor_config.json"
    (base / "preprocessor_config.json").write_bytes(settings.read_bytes())
    rng = np.random.default_rng(0)
    steps = rng.normal([3, 0, 0], [2, 0.3, 0.1], (NUM_ACTIONS, 3))
    corners = pose_to_corners(steps).astype(np.float32)
    save_file({"corners": corners}, folder / "codebook.safetensors")
    (folder / "config.yaml").write_text(CONFIG)


def write_checkpoint(folder: Path, kind: str) -> Path:
    """Write a bf16 Hugging Face folder, whose config.json serves as base, or a fp32 .ckpt."""
    start = time.perf_counter()
    if kind == "hf":
        path = folder / "base"
        write_hf_folder(path, GEOMETRY_3B, seed=0)
    else:
        path = folder / "model.ckpt"
        write_config(folder / "base", GEOMETRY_3B)
        write_lightning(path, GEOMETRY_3B, seed=0, layout="old")
    print(f"wrote {kind} in {time.perf_counter() - start:.0f} s", file=sys.stderr, flush=True)
    return path


def remove(checkpoint: Path) -> None:
    """Remove the weights, keep config and tokenizer."""
    for path in [checkpoint] if checkpoint.is_file() else checkpoint.glob("*.safetensors"):
        path.unlink()


def measure_build(folder: Path, checkpoint: Path, precision: str, target: str) -> dict[str, float]:
    """Build an engine bundle."""
    options = (
        f"--config {folder}/config.yaml --recipe {REPO}/demo/recipe.toml --out {folder}/engine"
    )
    command = f"build --checkpoint {checkpoint} --precision {precision} --target {target}"
    measured, _, _ = measure(f"{command} {options}".split())
    size = sum(path.stat().st_size for path in (folder / "engine").iterdir())
    return {f"build_{key}": value for key, value in measured.items()} | {"bundle_gib": size / 2**30}


def write_frames(folder: Path) -> None:
    """Write a request's JPEG files, 1920x1080."""
    rng = np.random.default_rng(0)
    for camera in CAMERAS:
        (folder / camera).mkdir(parents=True)
        for index in range(FRAMES_PER_CAMERA):
            coarse = Image.fromarray(rng.integers(0, 256, (9, 16, 3), np.uint8))
            coarse.resize((1920, 1080)).save(folder / camera / f"{index}.jpg")


def measure_plan(engine: Path, frames: Path, plans: int) -> dict[str, float]:
    """Plan in fresh processes, once to verify hashes and `plans` times; medians."""
    request = f"--frames {frames} --speed 5 --acceleration 0.1 --instruction ahead"
    command = f"plan {request} --mode fast --json --engine {engine}".split()
    first, *runs = [measure(command) for _ in range(plans + 1)]
    answers = [json.loads(output) for _, output, _ in runs]
    assert all(len(answer["action_tokens"]) == 10 for answer in answers)

    def median(values: list[float]) -> float:
        return float(np.median(values))

    stages = answers[0]["stages_ms"]
    return {
        "first_load_seconds": load_seconds(first[2]),
        "load_seconds": median([load_seconds(log) for _, _, log in runs]),
        **{f"plan_{key}": median([run[0][key] for run in runs]) for key in first[0]},
        "request_seconds": median([sum(a["stages_ms"].values()) / 1e3 for a in answers]),
        "forward_passes": answers[0]["forward_passes"],
        **{f"{stage}_ms": median([a["stages_ms"][stage] for a in answers]) for stage in stages},
    }


def load_seconds(log: str) -> float:
    """What the command line said of loading."""
    (seconds,) = re.findall(r"^loaded .* in ([0-9.]+) s$", log, re.MULTILINE)
    return float(seconds)


def measure(command: list[str]) -> tuple[dict[str, float], str, str]:
    """Run the command line; seconds, VmHWM and largest RssAnon in GiB, its stdout and stderr."""
    start = time.perf_counter()
    with (
        tempfile.TemporaryFile("w+") as log,
        subprocess.Popen(
            [*CLI, *command], stdout=subprocess.PIPE, stderr=log, text=True
        ) as process,
    ):
        hwm = anon = 0
        while process.poll() is None:
            status = read_status(process.pid)
            hwm, anon = max(hwm, status.get("VmHWM", 0)), max(anon, status.get("RssAnon", 0))
            time.sleep(POLL_SECONDS)
        assert process.stdout is not None
        output = process.stdout.read()
        seconds = time.perf_counter() - start
        log.seek(0)
        messages = log.read()
    if process.returncode != 0:
        sys.exit(f"{command} ended with {process.returncode}: {messages}")
    figures = {"seconds": seconds, "hwm_gib": hwm / 2**20, "anon_gib": anon / 2**20}
    return figures, output, messages


def read_status(pid: int) -> dict[str, int]:
    """Memory lines of /proc/PID/status in KiB."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return {}
    return {line.split(":")[0]: int(line.split()[1]) for line in lines if line.endswith(" kB")}


def table(rows: list[dict[str, float]]) -> str:
    """Markdown of all rows, with the machine."""
    keys = list(dict.fromkeys(key for row in rows for key in row))
    versions = ", ".join(f"{name} {version(name)}" for name in ("onnxruntime", "numpy"))
    lines = [f"{platform.machine()}, {os.cpu_count()} cores, {versions}; page cache warm", ""]
    lines += ["| " + " | ".join(keys) + " |", "|" + "---|" * len(keys)]
    for row in rows:
        cells = [f"{v:.2f}" if isinstance(v := row.get(k, ""), float) else str(v) for k in keys]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
