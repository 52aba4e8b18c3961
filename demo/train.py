"""Train the miniature: `python -m autovla_rt.demo.train OUT`, again to go on where it was stopped.

    OUT/config.yaml, codebook.safetensors, base/   the checkpoint in the official layout
    OUT/training.json                              seeds, commits, hours and size of the training
    OUT/training/                                  state, log and runs of the training

The same arguments give the same scenes in the same order. `make demo-model` runs it.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

# Beside the thread that draws scenes, threads that spin while they wait halve the speed.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from autovla_rt.demo import vision_targets
from autovla_rt.demo.foundation import CODEBOOK_SCENES, write_foundation
from autovla_rt.demo.samples import SampleMaker, SceneSource
from autovla_rt.demo.sft import WEIGHTS_FILE, train
from autovla_rt.demo.tokenizer import NUM_ACTIONS, RECIPE
from autovla_rt.demo.training_settings import Settings
from autovla_rt.demo.training_state import LOG_FILE
from autovla_rt.errors import AutovlaError, DependencyError
from autovla_rt.export.model_config import read_geometry
from autovla_rt.export.recipe import read_recipe
from autovla_rt.export.tokenizer import load_tokenizer
from autovla_rt.output_file import make_folder, write_file
from autovla_rt.runtime.actions import Codebook

BATCHES, SCENES_PER_BATCH = 2, 16
STEPS = 1800
RUNS_FILE = "runs.jsonl"


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
    write_file(
        out / "training.json", (json.dumps(record(settings, training), indent=1) + "\n").encode()
    )
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


def note_run(training: Path) -> None:
    """Append to the list of runs which code goes on with the training, and when."""
    make_folder(training)
    run = {"started": time.strftime("%Y-%m-%dT%H:%M:%S%z"), "commit": commit()}
    with (training / RUNS_FILE).open("a", encoding="utf-8") as file:
        file.write(json.dumps(run) + "\n")


def record(settings: Settings, training: Path) -> dict[str, object]:
    """Return what the checkpoint says about its training."""
    log_file = training / LOG_FILE
    log = log_file.read_text(encoding="utf-8").splitlines() if log_file.exists() else []
    runs = (training / RUNS_FILE).read_text(encoding="utf-8").splitlines()
    return {
        "seed": settings.seed,
        "scenes_per_step": BATCHES * SCENES_PER_BATCH,
        "steps_planned": settings.steps,
        "reasoning": settings.reasoning,
        "codebook_scenes": CODEBOOK_SCENES,
        "settings_sha256": settings.fingerprint(),
        "runs": [json.loads(line) for line in runs],
        "libraries": {name: version(name) for name in ("torch", "numpy", "numba", "tokenizers")},
        "cores": os.cpu_count(),
        "last": json.loads(log[-1]) if log else None,
    }


def commit() -> str:
    """Return the commit of the checkout that this file lies in; "unknown" outside of one."""
    words = ["git", "-C", str(Path(__file__).resolve().parent), "describe", "--always", "--dirty"]
    try:
        done = subprocess.run([*words, "--abbrev=40"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return done.stdout.strip()


def main() -> None:
    """Read the arguments, train, say where it ended."""
    parser = argparse.ArgumentParser(description="Train the miniature AutoVLA in its own world.")
    parser.add_argument("out", type=Path)
    parser.add_argument("--steps", type=int, default=STEPS, help="of 32 scenes [%(default)s]")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--without-reasoning", action="store_true", help="teach fast answers alone")
    parser.add_argument("--no-compile", action="store_true", help="train without a C++ compiler")
    arguments = parser.parse_args()
    try:
        done = run(
            arguments.out,
            arguments.steps,
            arguments.seed,
            reasoning=not arguments.without_reasoning,
            compiled=not arguments.no_compile,
        )
    except AutovlaError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    if done:
        print(f"{arguments.out}: trained, {arguments.steps} steps")
    else:
        print(f"{arguments.out}: stopped; run the same command again to go on")


if __name__ == "__main__":
    main()
