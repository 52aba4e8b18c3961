"""What each precision costs the miniature's driving, calibrated on scenes or on placeholders.

    python bench/quantization.py OUT [--scenes 500] [--calibration 32] [--processes 2] [--rounds 3]
                                 [--layers]

Writes scenes of seeds that neither training nor any other measurement uses, calibrates on some of
them and on placeholders (frames of noise, a text that says nothing), builds every engine and
evaluates each against the fp32 engine on the others. The same once more for the same model with
outliers: a few channels of every layer's inputs made 64 times as large and the weights that read
them as much smaller, which changes nothing in float32 and is how large models look (SmoothQuant,
section 3). What OUT has already is kept. Engines are timed in rounds, each in its turn; --rounds 0
where the machine is not idle. --layers tells instead what each block of the vision tower and each
layer of the language model loses when it alone is quantized.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from export_3b import CLI, REPO
from PIL import Image
from safetensors.numpy import save_file

from autovla_rt.config import CAMERAS, FRAMES_PER_CAMERA
from autovla_rt.demo.drivers import FRAME_HEIGHT, FRAME_WIDTH
from autovla_rt.demo.world_engine import model_files
from autovla_rt.export.calibration.groups import language_groups, vision_groups
from autovla_rt.export.calibration.rescaled_weights import RescaledWeights
from autovla_rt.export.open_model import open_model
from autovla_rt.export.weight_source import HEAD
from autovla_rt.fit import measure_speed
from autovla_rt.runtime.scene import PATH_KEYS

Record = dict[str, Any]

EVALUATION_SEED, CALIBRATION_SEED = 2_700_000_000, 2_710_000_000
CHECKPOINT = REPO / "demo" / "checkpoint"
OUTLIERS, OUTLIER = 4, 64.0
"""Channels of each input that are made larger, and how much."""

PLAIN, WITH_OUTLIERS = "plain", "outliers"
ENGINES = {
    "fp32": (PLAIN, "cpu", "fp32", None),
    "int8_wo": (PLAIN, "cpu", "int8_wo", None),
    "int8": (PLAIN, "cpu", "int8", None),
    "int8_sq": (PLAIN, "cpu", "int8_sq", "scenes"),
    "int8_sq, placeholders": (PLAIN, "cpu", "int8_sq", "placeholders"),
    "int4": (PLAIN, "cpu", "int4", None),
    "int4_awq": (PLAIN, "cpu", "int4_awq", "scenes"),
    "int4_awq, placeholders": (PLAIN, "cpu", "int4_awq", "placeholders"),
    "int8_sq, kv in int8": (PLAIN, "cpu", "int8_sq,kv=int8", "scenes"),
    "int4_awq, attention in int8_sq": (PLAIN, "cpu", "int4_awq,attention=int8_sq", "scenes"),
    "int4_awq, MLP in int8_sq": (PLAIN, "cpu", "int4_awq,mlp=int8_sq", "scenes"),
    "x86 fp32": (PLAIN, "x86", "fp32", None),
    "x86 int8": (PLAIN, "x86", "int8", None),
    "x86 int8_sq": (PLAIN, "x86", "int8_sq", "scenes"),
    "x86 int4": (PLAIN, "x86", "int4", None),
    "x86 int4_awq": (PLAIN, "x86", "int4_awq", "scenes"),
    "outliers: int8": (WITH_OUTLIERS, "cpu", "int8", None),
    "outliers: int8_sq": (WITH_OUTLIERS, "cpu", "int8_sq", "scenes"),
    "outliers: int8_sq, placeholders": (WITH_OUTLIERS, "cpu", "int8_sq", "placeholders"),
    "outliers: int4": (WITH_OUTLIERS, "cpu", "int4", None),
    "outliers: int4_awq": (WITH_OUTLIERS, "cpu", "int4_awq", "scenes"),
}
"""Name -> model, target, precision, what it is calibrated on."""

COLUMNS = (
    "Engine",
    "MB of weights",
    "fast plan, ms",
    "ADE 5 s, m",
    "increase, %",
    "ADE to fp32's plan, m",
    "same mode, %",
    "same action, %",
    "KL, nats",
    "cosine vision / language",
)


def command(words: str) -> None:
    """Run the command line."""
    subprocess.run([*CLI, *words.split()], check=True, stdout=subprocess.DEVNULL)


def write_placeholders(
    folder: Path, count: int, size: tuple[int, int] = (FRAME_WIDTH, FRAME_HEIGHT)
) -> None:
    """Write scenes of noise, in the official layout: what calibration is done with in a hurry."""
    width, height = size
    rng = np.random.default_rng(0)
    for number in range(count):
        token = f"placeholder-{number:03d}"
        scene: Record = {
            "token": token,
            "dataset_name": "miniature",
            "instruction": "keep forward",
            "velocity": 0.0,
            "acceleration": 0.0,
            "gt_trajectory": [[0.0, 0.0, 0.0]] * 10,
            "cot_output": "Lorem ipsum dolor sit amet, consectetur adipiscing elit.",
        }
        for camera in CAMERAS:
            paths = [f"{token}/{camera}/{index}.jpg" for index in range(FRAMES_PER_CAMERA)]
            for path in paths:
                pixels = rng.integers(0, 256, (height, width, 3), np.uint8)
                (folder / "sensors" / path).parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels).save(folder / "sensors" / path)
            scene[PATH_KEYS[camera]] = paths
        (folder / "scenes").mkdir(parents=True, exist_ok=True)
        (folder / "scenes" / f"{token}.json").write_text(json.dumps(scene))


def write_outliers(folder: Path) -> None:
    """Write the same model with channels that are much larger than others."""
    shutil.copytree(CHECKPOINT, folder)
    model = open_model(model_files(CHECKPOINT))
    rng = np.random.default_rng(0)
    weights = RescaledWeights(model.weights())
    for group in (
        *vision_groups(model.geometry.vision),
        *language_groups(model.geometry.language),
    ):
        if HEAD not in group.readers:  # tied to the embeddings
            scale = np.ones(int(group.channels.max()) + 1, np.float32)
            scale[rng.choice(group.channels, OUTLIERS, replace=False)] = 1 / OUTLIER
            weights.rescale(group, scale)
    tensors = {}
    for name in model.checkpoint.names:
        shape = model.checkpoint.shape(name)
        rows = weights.rows(name, 0, shape[0]) if len(shape) < 3 else model.checkpoint.read(name)
        tensors[name] = np.ascontiguousarray(rows, np.float32)
    model.checkpoint.close()
    save_file(tensors, folder / "base" / "model.safetensors", {"format": "pt"})


def model_options(out: Path, model: str) -> str:
    """Return the options that name a model."""
    folder = CHECKPOINT if model == PLAIN else out / model
    return (
        f"--checkpoint {folder}/base --config {folder}/config.yaml "
        f"--recipe {REPO}/demo/recipe.toml --frame-size {FRAME_WIDTH}x{FRAME_HEIGHT}"
    )


def prepare(out: Path, scenes: int, calibration: int) -> None:
    """Write scenes, calibrate, build; what is there is kept."""
    for name, count, seed in (
        ("evaluation", scenes, EVALUATION_SEED),
        ("scenes", calibration, CALIBRATION_SEED),
    ):
        if not (out / name).exists():
            command(f"scenes {out}/{name} --count {count} --seed {seed}")
    if not (out / "placeholders").exists():
        write_placeholders(out / "placeholders", calibration)
    if not (out / WITH_OUTLIERS).exists():
        write_outliers(out / WITH_OUTLIERS)
    for name, (model, target, precision, fitted) in ENGINES.items():
        options = f"{model_options(out, model)} "
        if fitted is not None:
            folder = out / f"calibration-{model}-{fitted}"
            if not (folder / "calibration.json").exists():
                given = f"--scenes {out}/{fitted}/scenes --sensor-root {out}/{fitted}/sensors"
                command(f"calibrate {options} {given} --count {calibration} --out {folder}")
            options += f"--calibration {folder} "
        if not engine_folder(out, name).exists():
            options += f"--target {target} --precision {precision}"
            command(f"build {options} --out {engine_folder(out, name)}")


def engine_folder(out: Path, name: str) -> Path:
    """Where an engine lies."""
    return out / "engines" / re.sub("[^a-z0-9_]+", "-", name)


def evaluate(out: Path, name: str, processes: int) -> Record:
    """Evaluate an engine against the fp32 one; returns the report."""
    given = f"--scenes {out}/evaluation/scenes --sensor-root {out}/evaluation/sensors"
    engines = f"--engine {engine_folder(out, name)} --against {engine_folder(out, 'fp32')}"
    folder = out / "reports" / engine_folder(out, name).name
    command(f"eval {engines} {given} --threads 1 --processes {processes} --out {folder}")
    report: Record = json.loads((folder / "evaluation.json").read_text())
    return report


def row(name: str, engine: Path, ms: float | None, report: Record) -> str:
    """Return a line of the table."""
    against = report["summary"]["against"]

    def told(values: list[float], unit: float = 1.0, digits: int = 2) -> str:
        mean, low, high = (unit * value for value in values)
        return f"{mean:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"

    size = sum(path.stat().st_size for path in engine.glob("*.bin")) / 1e6
    cells = [
        name,
        f"{size:.1f}",
        "" if ms is None else f"{ms:.1f}",
        told(report["summary"]["truth"]["ade_5s"]["mean"]),
        told(against["increase"]["ade_5s"]["share"], 100, 1),
        told(against["apart"]["ade_5s"]["mean"]),
        told(against["same_mode"], 100, 1),
        f"{100 * against['same_action'][0]:.1f}",
        f"{against['action_kl']['mean'][0]:.4f}",
        " / ".join(f"{against['cosine'][part]['mean']:.5f}" for part in ("vision", "language")),
    ]
    return f"| {' | '.join(cells)} |"


def speeds(out: Path, count: int) -> dict[str, float]:
    """Return milliseconds of a fast plan: medians of rounds in which every format has its turn.

    How an engine was calibrated does not change its speed, so one of each format is timed.
    """
    scenes = sorted((out / "evaluation" / "scenes").glob("*.json"))
    sensors = out / "evaluation" / "sensors"
    names = [
        name
        for name, (model, _, _, fitted) in ENGINES.items()
        if model == PLAIN and fitted != "placeholders"
    ]
    rounds = [
        {name: measure_speed(engine_folder(out, name), scenes, sensors, 1)[0] for name in names}
        for _ in range(count)
    ]
    return {name: float(np.median([of[name] for of in rounds] or [np.nan])) for name in names}


def layers(out: Path, scenes: int, processes: int) -> Iterator[str]:
    """Yield lines that tell what each block of the tower and each layer loses by itself."""
    model = open_model(model_files(CHECKPOINT))
    depth, count = model.geometry.vision.depth, model.geometry.language.num_hidden_layers
    model.checkpoint.close()
    blocks = ["patch_embed", *(f"blocks.{index}" for index in range(depth)), "merger"]
    sites = [(f"visual.{name}", "int8_sq") for name in blocks]
    sites += [(f"model.layers.{index}", "int4_awq") for index in range(count)]
    for name, precision in sites:
        engine = f"{name} in {precision}"
        ENGINES[engine] = (PLAIN, "cpu", f"fp32,{name}={precision}", "scenes")
    prepare(out, scenes, 0)
    for name, precision in sites:
        against = evaluate(out, f"{name} in {precision}", processes)["summary"]["against"]
        loss = 1 - against["cosine"]["vision"]["mean"]
        kl, same = np.mean(against["action_kl_by_step"]), 100 * against["same_action"][0]
        yield f"| {name} | {precision} | {loss:.1e} | {kl:.1e} | {same:.1f} |"


def main() -> None:
    """Read the arguments, do what is missing, print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--scenes", type=int, default=500)
    parser.add_argument("--calibration", type=int, default=32)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3, help="of timing, on an idle machine")
    parser.add_argument("--layers", action="store_true", help="each layer by itself instead")
    given = parser.parse_args()
    names = list(ENGINES)
    prepare(given.out, given.scenes, given.calibration)
    if given.layers:
        for line in layers(given.out, given.scenes, given.processes):
            print(line, flush=True)
        return
    ms = speeds(given.out, given.rounds)
    print(f"| {' | '.join(COLUMNS)} |\n{'|---' * len(COLUMNS)}|")
    for name in names:
        report = evaluate(given.out, name, given.processes)
        print(row(name, engine_folder(given.out, name), ms.get(name), report), flush=True)


if __name__ == "__main__":
    main()
