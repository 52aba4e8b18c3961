"""How the miniature gets better with data, with and without reasoning in it.

    python bench/scaling.py OUT [--scenes 3840 14720 57600] [--eval-scenes 1000]

Trains a model for every number of scenes and kind of data in OUT/SCENES-KIND, builds its engine,
plans unseen scenes with it, and writes OUT/scaling.json and OUT/scaling.png. A run that was stopped
goes on where it was; a folder that holds a whole training already (`make demo-model-sft`, moved to
OUT/57600-with) is used as it is.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

# Before NumPy comes in: see autovla_rt.demo.train.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import miniature
from matplotlib.figure import Figure

from autovla_rt.demo.world_engine import build_world_engine

SCENES_PER_STEP = 32
KINDS = {"with": (), "without": ("--without-reasoning",)}
MEASURES = {"ADE, m": ("errors", "ade"), "driving score": ("scores", "score")}


def train(folder: Path, scenes: int, kind: str) -> None:
    """Train in a process of its own, unless the folder says that it is done.

    Raises:
        CalledProcessError: training failed.
    """
    record = folder / "training.json"
    last = json.loads(record.read_text())["last"] if record.exists() else None
    if last is None or last["samples"] < scenes:
        steps = str(scenes // SCENES_PER_STEP)
        words = [sys.executable, "-m", "autovla_rt.demo.train", str(folder), "--steps", steps]
        subprocess.run([*words, *KINDS[kind]], check=True)


def draw(points: dict[str, dict[int, dict[str, Any]]], picture: Path) -> None:
    """Draw each measure over the number of scenes, with intervals.

    `points` are reports of the open loop, by kind of data and number of scenes.
    """
    figure = Figure(figsize=(11, 7), layout="constrained")
    for row, part in zip(
        figure.subplots(2, 2, sharex=True), ("complex", "straightforward"), strict=True
    ):
        for axes, (measure, (table, key)) in zip(row, MEASURES.items(), strict=True):
            for kind, by_scenes in points.items():
                counts = sorted(by_scenes)
                values = [by_scenes[n][table][f"{part}, model"][key] for n in counts]
                middle = [v[0] for v in values]
                errors = [[v[0] - v[1] for v in values], [v[2] - v[0] for v in values]]
                axes.errorbar(
                    counts, middle, errors, marker="o", capsize=3, label=f"{kind} reasoning"
                )
            axes.set_xscale("log")
            axes.set_title(f"{part}: {measure}", loc="left", fontsize=10)
            axes.grid(alpha=0.3)
            axes.legend(frameon=False)
            axes.set_xlabel("training scenes")
    figure.savefig(picture, dpi=110)


def main() -> None:
    """Read the arguments; train, build, plan and sum up."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--scenes", type=int, nargs="+", default=[3840, 14720, 57600])
    parser.add_argument("--eval-scenes", type=int, default=1000)
    arguments = parser.parse_args()
    seeds = range(miniature.FIRST_SEED, miniature.FIRST_SEED + arguments.eval_scenes)
    points: dict[str, dict[int, dict[str, Any]]] = {kind: {} for kind in KINDS}
    for scenes in sorted(arguments.scenes):
        for kind in KINDS:
            folder = arguments.out / f"{scenes}-{kind}"
            train(folder, scenes, kind)
            engine, lines = folder / "engine", folder / "open.jsonl"
            build_world_engine(folder, engine, "int8")
            miniature.run(partial(miniature.open_loop, engine), seeds, lines)
            points[kind][scenes] = miniature.report([lines])["open loop"]
            summary = json.dumps(points, indent=1)
            (arguments.out / "scaling.json").write_text(summary, encoding="utf-8")
            draw(points, arguments.out / "scaling.png")
    print(summary)


if __name__ == "__main__":
    main()
