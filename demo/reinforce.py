"""Reinforce the miniature: `python -m autovla_rt.demo.reinforce OUT --from CHECKPOINT`.

Again to go on where it was stopped.

    OUT/config.yaml, codebook.safetensors, base/   the checkpoint in the official layout
    OUT/training.json                              what it was made from, seeds, commits, hours
    OUT/reinforcement/                             state, log, curves and runs
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from autovla_rt.demo.curves import draw_curves
from autovla_rt.demo.grpo import FIRST_SEED, Reinforcer, reinforce
from autovla_rt.demo.grpo_settings import GrpoSettings
from autovla_rt.demo.policy import open_policy
from autovla_rt.demo.rewards import RewardSettings
from autovla_rt.demo.rollout_engine import RolloutEngine, copy_without_weights
from autovla_rt.demo.rollout_pool import RolloutPool
from autovla_rt.demo.sft import WEIGHTS_FILE
from autovla_rt.demo.training_record import (
    RECORD_FILE,
    conclude,
    note_run,
    provenance,
    write_record,
)
from autovla_rt.demo.training_state import LOG_FILE
from autovla_rt.errors import CheckpointError
from autovla_rt.output_file import write_file

STEPS = 160
CURVES_FILE = "curves.png"


def run(out: Path, checkpoint: Path, settings: GrpoSettings) -> bool:
    """Reinforce a checkpoint until the steps are done or a signal comes; True if they are done.

    Raises:
        CheckpointError: the checkpoint, or the state of its training, is damaged or of other
            settings; the message names the file.
        CodebookError: its codebook is.
        StorageError: the file system refused.
    """
    if not (checkpoint / "base" / WEIGHTS_FILE).is_file():
        raise CheckpointError(
            f"{checkpoint}: expected a trained checkpoint with base/{WEIGHTS_FILE}, found none.\n"
            "Train one: python -m autovla_rt.demo.train OUT"
        )
    if out.resolve() == checkpoint.resolve():
        raise CheckpointError(
            f"{out}: expected another folder than the checkpoint's, which would be lost.\n"
            "Give a new folder."
        )
    policy, before = open_policy(checkpoint), supervised_record(checkpoint)
    copy_without_weights(checkpoint, out)
    folder = out / "reinforcement"
    note_run(folder)
    with (
        tempfile.TemporaryDirectory(prefix="autovla-rt-") as scratch,
        RolloutPool(settings.processes, settings.group_size, settings.temperature) as pool,
    ):
        engine = RolloutEngine(checkpoint, Path(scratch))
        done = reinforce(Reinforcer(settings, policy, engine, pool, folder))
    write_file(out / "base" / WEIGHTS_FILE, (folder / WEIGHTS_FILE).read_bytes())
    write_record(out, {**before, "reinforcement": describe(settings, folder, policy.sha256)})
    draw_curves(folder / LOG_FILE, folder / CURVES_FILE)
    return done == settings.steps


def supervised_record(checkpoint: Path) -> dict[str, Any]:
    """Return what a checkpoint says about its own training; nothing where it says nothing."""
    path = checkpoint / RECORD_FILE
    if not path.exists():
        return {}
    try:
        record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(
            f"{path}: not JSON ({error}).\nRestore it, or delete it to go without."
        ) from error
    return record


def describe(settings: GrpoSettings, folder: Path, digest: str) -> dict[str, object]:
    """Return what the checkpoint says about its reinforcement."""
    return {
        "from_sha256": digest,
        "settings": asdict(settings),
        "first_scene_seed": FIRST_SEED,
        **provenance(folder, "torch", "numpy", "numba", "onnxruntime", "tokenizers"),
    }


def share(text: str) -> float:
    """Read an argument from 0 to 1.

    Raises:
        ArgumentTypeError: it is none.
    """
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"expected a share from 0 to 1, got {text!r}")
    return value


def main() -> None:
    """Read the arguments, train, say where it ended."""
    defaults, reward = GrpoSettings(STEPS), RewardSettings()
    parser = argparse.ArgumentParser(description="Reinforce the miniature AutoVLA with GRPO.")
    parser.add_argument("out", type=Path)
    parser.add_argument("--from", dest="checkpoint", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--seed", type=int, default=defaults.seed)
    parser.add_argument("--scenes", type=int, default=defaults.scenes_per_step, help="of a step")
    parser.add_argument("--group-size", type=int, default=defaults.group_size)
    parser.add_argument("--driven-share", type=share, default=defaults.driven_share)
    parser.add_argument("--kl", type=float, default=defaults.kl)
    parser.add_argument("--lr", type=float, default=defaults.lr)
    parser.add_argument("--imitation", type=share, default=reward.imitation)
    parser.add_argument("--penalty-weight", type=float, default=reward.weight)
    parser.add_argument("--penalty-centre", type=float, default=reward.centre, help="tokens")
    parser.add_argument("--penalty-width", type=float, default=reward.width, help="tokens")
    arguments = parser.parse_args()
    settings = GrpoSettings(
        arguments.steps,
        seed=arguments.seed,
        scenes_per_step=arguments.scenes,
        group_size=arguments.group_size,
        driven_share=arguments.driven_share,
        kl=arguments.kl,
        lr=arguments.lr,
        reward=RewardSettings(
            arguments.imitation,
            arguments.penalty_weight,
            arguments.penalty_centre,
            arguments.penalty_width,
        ),
    )
    training = partial(run, arguments.out, arguments.checkpoint, settings)
    conclude(training, arguments.out, f"reinforced, {settings.steps} steps")


if __name__ == "__main__":
    main()
