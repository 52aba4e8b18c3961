"""Train the miniature: `python -m autovla_rt.demo.train OUT`, again to go on where it was stopped.

    OUT/config.yaml, codebook.safetensors, base/   the checkpoint in the official layout
    OUT/training/                                  state, log and settings of the training

The same arguments give the same scenes in the same order. `make demo-model` runs it.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

# Beside the thread that draws scenes, threads that spin while they wait halve the speed.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from safetensors.numpy import load_file

from autovla_rt.demo import vision_targets
from autovla_rt.demo.foundation import write_foundation
from autovla_rt.demo.samples import SampleMaker, SceneSource
from autovla_rt.demo.sft import WEIGHTS_FILE, train
from autovla_rt.demo.tokenizer import RECIPE
from autovla_rt.demo.training_settings import Settings
from autovla_rt.export.model_config import read_geometry
from autovla_rt.export.recipe import read_recipe
from autovla_rt.output_file import write_file

SCENES_PER_KIND = 16
STEPS = 2200


def run(out: Path, steps: int, seed: int) -> bool:
    """Train in a folder until `steps` are done or a signal comes; True if they are done."""
    if not (out / "config.yaml").exists():
        write_foundation(out, seed)
    base = out / "base"
    geometry = read_geometry(base)
    corners = load_file(out / "codebook.safetensors")["corners"]
    maker = SampleMaker(base, corners, read_recipe(RECIPE), geometry)
    settings = Settings(
        geometry=geometry,
        corners=corners,
        action_start_id=geometry.language.vocab_size - len(corners),
        video_token_id=maker.tokenizer.token_to_id("<|video_pad|>"),
        auxiliary_width=vision_targets.WIDTH,
        auxiliary_weight=1.0,
        steps=steps,
        seed=seed,
    )
    training = out / "training"
    done = train(settings, SceneSource(maker, SCENES_PER_KIND), training)
    write_file(base / WEIGHTS_FILE, (training / WEIGHTS_FILE).read_bytes())
    return done == steps


def main() -> None:
    """Read the arguments, train, say where it ended."""
    parser = argparse.ArgumentParser(description="Train the miniature AutoVLA in its own world.")
    parser.add_argument("out", type=Path)
    parser.add_argument("--steps", type=int, default=STEPS, help="of 32 scenes [%(default)s]")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    if run(arguments.out, arguments.steps, arguments.seed):
        print(f"{arguments.out}: trained, {arguments.steps} steps")
    else:
        print(f"{arguments.out}: stopped; run the same command again to go on")


if __name__ == "__main__":
    main()
