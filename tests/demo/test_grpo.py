"""Reinforcement learns, skips what teaches nothing, and survives a kill."""

import dataclasses
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.numpy import load_file

from autovla_rt.demo.curves import draw_curves
from autovla_rt.demo.grpo import Reinforcer
from autovla_rt.demo.grpo_settings import GrpoSettings
from autovla_rt.demo.policy import open_policy
from autovla_rt.demo.reinforce import main
from autovla_rt.demo.rewards import RewardSettings
from autovla_rt.demo.rollout_engine import RolloutEngine
from autovla_rt.demo.rollouts import sample_group
from autovla_rt.demo.scenes import record_scene
from autovla_rt.errors import CheckpointError
from autovla_rt.runtime.planner import Planner

CHECKPOINT = Path(__file__).parents[2] / "demo" / "checkpoint"
SMALL = GrpoSettings(
    4, scenes_per_step=2, group_size=3, driven_share=0.0, log_every=1, save_every=1, warmup_steps=1
)


class HerePool:
    """Samples in this process, and lets a test change what comes out."""

    def __init__(self, group_size, change=lambda group: group):
        self._group_size, self._change = group_size, change

    def sample(self, bundle, step, orders):
        planner = Planner.load(bundle, threads=1)
        return [
            self._change(sample_group(planner, record_scene(order.seed), self._group_size, 1.0))
            for order in orders
        ]


@pytest.fixture
def make(tmp_path):
    """A trainer of the shipped checkpoint in a folder of its own."""

    def trainer(settings=SMALL, change=lambda group: group, out=tmp_path / "out"):
        out.mkdir(exist_ok=True)
        engine = RolloutEngine(CHECKPOINT, tmp_path / "engine")
        pool = HerePool(settings.group_size, change)
        return Reinforcer(settings, open_policy(CHECKPOINT), engine, pool, out)

    return trainer


SCORE_ALONE = RewardSettings(imitation=0.0, weight=0.0)


def log_of(folder):
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    for line in lines:
        del line["hours"]
    return lines


def weights_of(trainer):
    return {name: p.detach().clone() for name, p in trainer.model.named_parameters()}


def differs(trainer, before):
    return {n for n, p in trainer.model.named_parameters() if not torch.equal(p, before[n])}


def with_scores(group, values):
    rollouts = [
        dataclasses.replace(r, score=dataclasses.replace(r.score, score=v, red_light=False))
        for r, v in zip(group.rollouts, values, strict=True)
    ]
    return dataclasses.replace(group, rollouts=tuple(rollouts))


def test_a_step_moves_the_language_model_alone(make):
    trainer = make()
    before = weights_of(trainer)
    trainer.advance()
    moved = differs(trainer, before)
    assert moved
    assert all(name.startswith("model.") for name in moved)
    (line,) = log_of(trainer.out)
    assert line["answers"] == 6
    assert line["engine_gap"] < 1e-5  # the engine had these very weights
    assert line["divergence"] < 1e-6  # which were the reference's


def test_the_next_step_samples_with_the_new_weights(make):
    settings = dataclasses.replace(SMALL, lr=3e-3)
    trainer = make(settings)
    trainer.advance()
    trainer.advance()
    _, second = log_of(trainer.out)
    assert second["divergence"] > 0.01
    assert second["engine_gap"] < 1e-5


def test_what_is_rewarded_becomes_more_probable(make):
    """With one reward for action tokens of low ids, later answers have lower ids."""

    def change(group):
        means = [sum(r.decoded.action_indices) / 10 for r in group.rollouts]
        return with_scores(group, [1 - mean / 2048 for mean in means])

    settings = dataclasses.replace(
        SMALL, steps=14, group_size=8, lr=2e-3, kl=0.0, reward=SCORE_ALONE
    )
    trainer = make(settings, change)
    for _ in range(settings.steps):
        trainer.advance()
    scores = [line["score"] for line in log_of(trainer.out)]
    assert sum(scores[-4:]) > sum(scores[:4]) + 0.8


def test_a_reward_that_is_no_number_is_counted_and_teaches_nothing(make):
    scores = [0.2, math.nan, 0.9]
    trainer = make(change=lambda group: with_scores(group, scores))
    before = weights_of(trainer)
    trainer.advance()
    assert differs(trainer, before)
    assert all(p.isfinite().all() for p in trainer.model.parameters())
    (line,) = log_of(trainer.out)
    assert line["invalid_rewards"] == 2
    assert line["constant_groups"] == 0
    assert line["answers"] == 4
    assert line["score"] == pytest.approx(0.55)


@pytest.mark.parametrize("scores", [[0.5] * 3, [math.nan] * 3, [math.nan, 0.5, 0.5]])
def test_a_group_without_a_difference_is_counted_and_skipped(make, scores):
    settings = dataclasses.replace(SMALL, reward=SCORE_ALONE)
    trainer = make(settings, lambda group: with_scores(group, scores))
    before = weights_of(trainer)
    trainer.advance()
    assert not differs(trainer, before)
    (line,) = log_of(trainer.out)
    assert line["constant_groups"] == 2
    assert line["invalid_rewards"] == 2 * sum(math.isnan(s) for s in scores)


SCRIPT = """
import sys
from pathlib import Path
from autovla_rt.demo.grpo_settings import GrpoSettings
from autovla_rt.demo.reinforce import run

if __name__ == "__main__":
    settings = GrpoSettings(
        3, scenes_per_step=2, group_size=2, driven_share=0.5, log_every=1, save_every=1, processes=1
    )
    sys.exit(0 if run(Path(sys.argv[1]), Path(sys.argv[2]), settings) else 3)
"""


def start(tmp_path, out):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    return subprocess.Popen([sys.executable, script, out, CHECKPOINT], start_new_session=True)


def wait_for_line(log):
    until = time.monotonic() + 120
    while not log.exists() or not log.read_bytes().endswith(b"\n"):
        assert time.monotonic() < until
        time.sleep(0.02)


def children_of(pid):
    return [
        int(path.parent.name)
        for path in Path("/proc").glob("[0-9]*/stat")
        if path.exists() and path.read_text().rsplit(")", 1)[1].split()[1] == str(pid)
    ]


@pytest.mark.slow
def test_a_killed_run_goes_on_with_the_same_curve(tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert start(tmp_path, whole).wait() == 0
    run = start(tmp_path, killed)
    wait_for_line(killed / "reinforcement" / "log.jsonl")
    samplers = children_of(run.pid)
    run.kill()
    run.wait()
    deadline = time.monotonic() + 20
    while any(Path(f"/proc/{pid}").exists() for pid in samplers):  # nobody stays behind
        assert time.monotonic() < deadline
        time.sleep(0.1)
    again = start(tmp_path, killed)
    time.sleep(1)
    os.kill(again.pid, signal.SIGTERM)  # at whatever it is doing
    if again.wait() != 0:
        assert start(tmp_path, killed).wait() == 0
    assert log_of(killed / "reinforcement") == log_of(whole / "reinforcement")
    ends = [load_file(folder / "base" / "model.safetensors") for folder in (whole, killed)]
    assert all((ends[0][name] == ends[1][name]).all() for name in ends[0])
    record = json.loads((killed / "training.json").read_text())["reinforcement"]
    assert len(record["runs"]) >= 2
    assert record["settings"]["steps"] == 3
    assert (killed / "reinforcement" / "curves.png").read_bytes().startswith(b"\x89PNG")


def reinforce(*words):
    return subprocess.run(
        [sys.executable, "-m", "autovla_rt.demo.reinforce", *words], capture_output=True, text=True
    )


@pytest.mark.slow
def test_a_damaged_or_foreign_state_is_named(tmp_path, make):
    trainer = make(out=tmp_path / "reinforcement")
    trainer.advance()
    trainer.save()
    with pytest.raises(CheckpointError, match="belongs to other settings"):
        make(dataclasses.replace(SMALL, kl=0.5), out=tmp_path / "reinforcement")
    state = tmp_path / "reinforcement" / "state.pt"
    content = bytearray(state.read_bytes())
    content[1000] ^= 1
    state.write_bytes(content)
    done = reinforce(tmp_path, "--from", CHECKPOINT)
    assert done.returncode == 4
    assert "state.pt: the training state is damaged" in done.stderr


@pytest.mark.parametrize("make_it", ["missing", "itself", "truncated"])
def test_a_checkpoint_that_cannot_be_used_is_refused(tmp_path, make_it):
    checkpoint = tmp_path / "checkpoint"
    shutil.copytree(CHECKPOINT, checkpoint)
    weights = checkpoint / "base" / "model.safetensors"
    if make_it == "missing":
        weights.unlink()
    if make_it == "truncated":
        weights.write_bytes(weights.read_bytes()[:5000])
    out = checkpoint if make_it == "itself" else tmp_path / "out"
    done = reinforce(out, "--from", checkpoint)
    assert done.returncode == 4, done.stderr
    assert str(checkpoint) in done.stderr
    assert "Traceback" not in done.stderr
    assert make_it == "itself" or not out.exists()


@pytest.mark.parametrize("option", ["--imitation", "--driven-share"])
@pytest.mark.parametrize("value", ["1.5", "-0.1", "nan", "half"])
def test_what_is_no_share_is_refused(tmp_path, monkeypatch, capsys, option, value):
    out = tmp_path / "out"
    words = ["reinforce", str(out), "--from", str(CHECKPOINT), f"{option}={value}"]
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(SystemExit) as exited:
        main()
    assert exited.value.code == 2
    assert f"expected a share from 0 to 1, got '{value}'" in capsys.readouterr().err
    assert not out.exists()


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    done = reinforce(tmp_path / "file" / "out", "--from", CHECKPOINT)
    assert done.returncode == 10
    assert str(tmp_path / "file" / "out") in done.stderr
    assert "Traceback" not in done.stderr


def test_a_log_without_a_line_has_no_curves(tmp_path):
    (tmp_path / "log.jsonl").write_text("")
    draw_curves(tmp_path / "log.jsonl", tmp_path / "curves.png")
    draw_curves(tmp_path / "missing.jsonl", tmp_path / "curves.png")
    assert not (tmp_path / "curves.png").exists()
