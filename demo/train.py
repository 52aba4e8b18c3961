"""Train the miniature: `python -m autovla_rt.demo.train OUT`, again to go on where it was stopped.

    OUT/config.yaml, codebook.safetensors, base/   the checkpoint in the official layout
    OUT/training.json                              seeds, commits, hours and size of the training
    OUT/training/                                  state, log and runs of the training

The same arguments give the same scenes in the same order. `make demo-model-sft` runs it.
"""

from __future__ import annotations

import argparse
import os
import shutil
from functools import partial
from pathlib import Path
from typing import Any

# Beside the thread that draws scenes, threads that spin while they wait halve the speed.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from autovla_rt.demo import vision_targets
from autovla_rt.demo.foundation import CODEBOOK_SCENES, write_foundation
from autovla_rt.demo.samples import SampleMaker, SceneSource
from autovla_rt.demo.sft import WEIGHTS_FILE, train
from autovla_rt.demo.tokenizer import NUM_ACTIONS, RECIPE
from autovla_rt.demo.training_record import conclude, note_run, provenance, write_record
from autovla_rt.demo.training_settings import Settings
from autovla_rt.errors import DependencyError
from autovla_rt.export.model_config import read_geometry
from autovla_rt.export.recipe import read_recipe
from autovla_rt.export.tokenizer import load_tokenizer
from autovla_rt.output_file import write_file
from autovla_rt.runtime.actions import Codebook

BATCHES, SCENES_PER_BATCH = 2, 16
STEPS = 1800


def run(out: Path, steps: int, seed: int, *, reasoning: bool = True, compiled: bool = True) -> bool:
    """Train in a folder until `steps` are done or a signal comes; True if they are done.

    Without `reasoning` scenes have fast answers alone.
    `compiled` fuses kernels, which takes a C++ compiler and makes training a third faster.

    Raises:
        CheckpointError: the folder's checkpoint, or the state of its training, is damaged or of
            other settings; the message names the file.
        CodebookError: its codebook is.
        DependencyError: there is no C++ compiler.
        StorageError: the file system refused.
    """
    if compiled:
        require_compiler()
    if not (out / "config.yaml").exists():
        write_foundation(out, seed)
    base = out / "base"
    geometry = read_geometry(base)
    corners = Codebook.load(out / "codebook.safetensors", NUM_ACTIONS).corners
    first_action = geometry.language.vocab_size - len(corners)
    tokenizer = load_tokenizer(
        base, action_start_id=first_action, num_actions=len(corners), add_action_tokens=False
    )
    maker = SampleMaker(tokenizer, corners, read_recipe(RECIPE), geometry, reasoning=reasoning)
    settings = Settings(
        geometry=geometry,
        corners=corners,
        action_start_id=first_action,
        video_token_id=tokenizer.token_to_id("<|video_pad|>"),
        auxiliary_width=vision_targets.WIDTH,
        auxiliary_weight=4.0,
        peak_lr=3e-3,
        warmup_steps=min(100, 1 + steps // 10),
        steps=steps,
        reasoning=reasoning,
        seed=seed,
        compile=compiled,
    )
    training = out / "training"
    note_run(training)
    done = train(settings, SceneSource(maker, BATCHES, SCENES_PER_BATCH), training)
    write_file(base / WEIGHTS_FILE, (training / WEIGHTS_FILE).read_bytes())
    write_record(out, record(settings, training))
    return done == steps


def require_compiler() -> None:
    """Find out before any work whether kernels can be compiled.

    Raises:
        DependencyError: there is no C++ compiler.
    """
    wanted = os.environ.get("CXX", "g++")
    if shutil.which(wanted) is None:
        raise DependencyError(
            f"training compiles its kernels and needs a C++ compiler; there is no {wanted} here.\n"
            "Install one (apt-get install g++), or train without: --no-compile"
        )


def record(settings: Settings, training: Path) -> dict[str, Any]:
    """Return what the checkpoint says about its training."""
    return {
        "seed": settings.seed,
        "scenes_per_step": BATCHES * SCENES_PER_BATCH,
        "steps_planned": settings.steps,
        "reasoning": settings.reasoning,
        "codebook_scenes": CODEBOOK_SCENES,
        "settings_sha256": settings.fingerprint(),
        **provenance(training, "torch", "numpy", "numba", "tokenizers"),
    }


def main() -> None:
    """Read the arguments, train, say where it ended."""
    parser = argparse.ArgumentParser(description="Train the miniature AutoVLA in its own world.")
    parser.add_argument("out", type=Path)
    parser.add_argument("--steps", type=int, default=STEPS, help="of 32 scenes [%(default)s]")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--without-reasoning", action="store_true", help="teach fast answers alone")
    parser.add_argument("--no-compile", action="store_true", help="train without a C++ compiler")
    arguments = parser.parse_args()
    training = partial(
        run,
        arguments.out,
        arguments.steps,
        arguments.seed,
        reasoning=not arguments.without_reasoning,
        compiled=not arguments.no_compile,
    )
    conclude(training, arguments.out, f"trained, {arguments.steps} steps")


if __name__ == "__main__":
    main()
