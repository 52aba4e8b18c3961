"""Training learns, stops and goes on as if it had not stopped, and refuses what it cannot use."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from autovla_rt.config import Geometry, LanguageGeometry, VisionGeometry
from autovla_rt.demo import sft
from autovla_rt.demo.batch import Batch
from autovla_rt.demo.prefetch import prefetched
from autovla_rt.demo.sft import train
from autovla_rt.demo.training_settings import Settings
from autovla_rt.errors import CheckpointError
from autovla_rt.export.tensors.model_names import expected_shapes
from autovla_rt.kernels.contour import pose_to_corners

VIDEO, ACTION_START, ACTIONS = 5, 30, 20
STARTS = (1, 57, 113)
PROMPT, ANSWER = 170, 4

GEOMETRY = Geometry(
    vision=VisionGeometry(
        depth=2,
        hidden_size=32,
        num_heads=2,
        intermediate_size=48,
        out_hidden_size=32,
        fullatt_block_indexes=(1,),
    ),
    language=LanguageGeometry(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        intermediate_size=48,
        vocab_size=ACTION_START + ACTIONS,
        rms_norm_eps=1e-6,
        rope_theta=1e6,
        mrope_section=(2, 3, 3),
        tie_word_embeddings=True,
    ),
)


def settings(**changes):
    values = {
        "geometry": GEOMETRY,
        "corners": pose_to_corners(np.linspace([0, 0, 0], [5, 0, 0], ACTIONS)),
        "action_start_id": ACTION_START,
        "video_token_id": VIDEO,
        "auxiliary_width": 2,
        "steps": 12,
        "warmup_steps": 2,
        "log_every": 2,
        "save_every": 4,
        "compile": False,
    }
    return Settings(**{**values, **changes})


class FakeSource:
    """Two micro-batches a step of noise, whose answer is the brightness of the pictures."""

    def __init__(self, stop_at=None, action=None):
        self.stop_at, self.action = stop_at, action

    def batch(self, step):
        if step == self.stop_at:
            self.action()
        rng = np.random.default_rng(step)
        return [micro_batch(rng, extra) for extra in (0, 3)]


def micro_batch(rng, padding, count=2):
    bright = rng.integers(0, 2, count)
    patches = np.where(bright, 255, 0).astype(np.uint8)[:, None, None, None]
    answer = np.where(bright, ACTION_START + 3, ACTION_START + 15)[:, None]
    tokens = np.full((count, PROMPT + ANSWER + padding), 9)
    for start in STARTS:
        tokens[:, start : start + 56] = VIDEO
    tokens[:, PROMPT : PROMPT + ANSWER] = answer
    tokens[:, PROMPT] = 10
    segments = np.repeat([0, 1, -1], (PROMPT, ANSWER, padding)).astype(np.int8)
    length = tokens.shape[1]
    places = np.arange(PROMPT - 1, PROMPT + ANSWER - 1)
    rows = (np.arange(count)[:, None] * length + places).reshape(-1)
    return Batch(
        patches=np.broadcast_to(patches, (count, 6, 112, 1176)).copy(),
        token_ids=tokens,
        positions=np.broadcast_to(np.arange(length), (3, count, length)).copy(),
        segments=np.tile(segments, (count, 1)),
        predict_from=rows,
        targets=tokens.reshape(-1)[rows + 1],
        weights=np.ones(rows.size, np.float32),
        auxiliary=np.broadcast_to(bright[:, None, None], (count, 168, 2)).astype(np.float32),
        auxiliary_weights=np.ones((count, 168, 2), np.float32),
    )


def log_of(out):
    """The log without what depends on the clock."""
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    for line in lines:
        del line["samples_per_second"], line["hours"]
    return lines


@pytest.fixture(autouse=True, scope="module")
def _threads():
    """Training sets torch's threads for the whole process: give the others theirs back."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The log of a training that nobody interrupts."""
    out = tmp_path_factory.mktemp("whole")
    assert train(settings(), FakeSource(), out) == 12
    return out


def test_training_learns_the_answer_and_the_auxiliary_targets(tmp_path):
    train(settings(steps=60, peak_lr=5e-3, log_every=10), FakeSource(), tmp_path)
    first, *_, last = log_of(tmp_path)
    assert last["action_cross_entropy"] < 0.5 * first["action_cross_entropy"]
    assert last["text_cross_entropy"] < 0.2 * first["text_cross_entropy"]
    assert last["auxiliary"] < 0.6 * first["auxiliary"]


def test_the_log_has_a_line_for_every_two_steps(whole):
    lines = log_of(whole)
    assert [line["step"] for line in lines] == [2, 4, 6, 8, 10, 12]
    assert [line["samples"] for line in lines] == [8, 16, 24, 32, 40, 48]
    assert lines[0]["lr"] == 1e-3
    assert lines[-1]["lr"] < 1e-4


def test_the_average_is_exported_without_the_auxiliary_head(whole):
    stored = load_file(whole / "model.safetensors")
    assert {n: tuple(t.shape) for n, t in stored.items()} == expected_shapes(GEOMETRY)
    content = (whole / "state.pt").read_bytes()[32:]
    (whole / "copy.pt").write_bytes(content)
    state = torch.load(whole / "copy.pt", weights_only=True)
    name = "visual.merger.ln_q.weight"
    assert torch.equal(stored[name], state["average"][name].half())
    assert not torch.equal(state["average"][name], state["model"][name])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_at_once_and_training_goes_on_from_there(whole, tmp_path, number):
    stopping = FakeSource(stop_at=6, action=lambda: os.kill(os.getpid(), number))
    done = train(settings(prefetch=1), stopping, tmp_path)
    assert 0 < done < 12
    assert signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler)
    assert train(settings(), FakeSource(), tmp_path) == 12
    assert log_of(tmp_path) == log_of(whole)
    assert (tmp_path / "model.safetensors").read_bytes() == (
        whole / "model.safetensors"
    ).read_bytes()


KILLED = """
import os, signal, sys, time
from pathlib import Path
sys.path.insert(0, {folder!r})
from test_sft import FakeSource, settings, train
out = Path({out!r})

def die_behind_the_state_of_step_8():
    while '"step": 10' not in (out / "log.jsonl").read_text():
        time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGKILL)

train(settings(prefetch=1), FakeSource(11, die_behind_the_state_of_step_8), out)
"""


def test_a_killed_training_goes_on_from_its_last_state(whole, tmp_path):
    program = KILLED.format(folder=str(Path(__file__).parent), out=str(tmp_path))
    killed = subprocess.run([sys.executable, "-c", program], check=False)
    assert killed.returncode == -signal.SIGKILL
    with (tmp_path / "log.jsonl").open("a") as log:
        log.write('{"step": 10, "los')
    assert train(settings(), FakeSource(), tmp_path) == 12
    assert log_of(tmp_path) == log_of(whole)


@pytest.mark.slow
def test_compiled_training_goes_on_with_the_same_bits(tmp_path):
    compiled = {"compile": True, "prefetch": 1, "log_every": 1}
    train(settings(**compiled), FakeSource(), tmp_path / "whole")
    stopping = FakeSource(stop_at=5, action=lambda: os.kill(os.getpid(), signal.SIGTERM))
    assert train(settings(**compiled), stopping, tmp_path / "parts") < 12
    torch.compiler.reset()
    assert train(settings(**compiled), FakeSource(), tmp_path / "parts") == 12
    assert log_of(tmp_path / "parts") == log_of(tmp_path / "whole")


def test_a_finished_training_does_nothing_more(whole, tmp_path):
    before = (whole / "model.safetensors").read_bytes()
    assert train(settings(), FakeSource(), whole) == 12
    assert (whole / "model.safetensors").read_bytes() == before


def test_a_damaged_state_is_refused(whole, tmp_path):
    content = bytearray((whole / "state.pt").read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / "state.pt").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"state\.pt: the training state is damaged"):
        train(settings(), FakeSource(), tmp_path)
    (tmp_path / "state.pt").write_bytes(content[:100])
    with pytest.raises(CheckpointError, match="delete it to start again"):
        train(settings(), FakeSource(), tmp_path)


@pytest.mark.parametrize("change", [{"peak_lr": 2e-3}, {"steps": 13}, {"seed": 1}])
def test_a_state_of_other_settings_is_refused(whole, change):
    with pytest.raises(CheckpointError, match="belongs to other settings"):
        train(settings(**change), FakeSource(), whole)


def test_the_pace_may_change_between_runs():
    assert settings(threads=1, save_every=9, prefetch=3).fingerprint() == settings().fingerprint()


def test_what_the_source_raises_ends_the_training(tmp_path):
    def fail():
        raise KeyError("no such scene")

    with pytest.raises(KeyError, match="no such scene"):
        train(settings(), FakeSource(stop_at=5, action=fail), tmp_path)
    assert not [t for t in threading.enumerate() if t.name == "prefetch"]


def test_prefetching_is_bounded():
    made = []

    class Counting:
        def batch(self, step):
            made.append(step)
            return []

    with prefetched(Counting(), 3, 100, depth=2) as batches:
        next(batches)
        threading.Event().wait(0.3)
        assert made == [3, 4, 5, 6]  # one taken, two waiting, one in the thread's hands


def test_learning_rate_warms_up_and_falls_to_two_percent():
    some = settings(steps=1000, warmup_steps=100)
    rates = [some.lr(step) for step in range(1000)]
    assert rates[0] == pytest.approx(1e-5)
    assert max(rates) == rates[99] == pytest.approx(1e-3)
    assert rates[-1] == pytest.approx(2e-5, rel=0.01)


def test_predictions_weigh_in_over_all_micro_batches(tmp_path):
    trainer = sft.Trainer(settings(), tmp_path)
    double, single = FakeSource().batch(0)
    heavy = dataclasses.replace(double, weights=2 * double.weights)
    losses = [trainer._backward([batch])["loss"] for batch in (double, single)]
    auxiliary = [trainer._backward([batch])["auxiliary"] for batch in (double, single)]
    answers = np.array(losses) - 0.2 * np.array(auxiliary)
    expected = answers @ [2 / 3, 1 / 3] + 0.2 * np.mean(auxiliary)
    assert trainer._backward([heavy, single])["loss"] == pytest.approx(expected, rel=1e-4)
