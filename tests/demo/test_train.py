"""The training command: it trains, records what it did, and names what it cannot read."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.numpy import load_file

CHECKPOINT = Path(__file__).parents[2] / "demo" / "checkpoint"


def train(out, *words):
    return subprocess.run(
        [sys.executable, "-m", "autovla_rt.demo.train", out, "--no-compile", *words],
        capture_output=True,
        text=True,
    )


@pytest.fixture
def folder(tmp_path):
    """A folder whose tokenizer, codebook and configuration are there already."""
    shutil.copytree(CHECKPOINT, tmp_path / "out", ignore=shutil.ignore_patterns("training*"))
    return tmp_path / "out"


@pytest.mark.slow
def test_two_steps_of_training_and_their_record(folder):
    before = load_file(folder / "base" / "model.safetensors")
    done = train(folder, "--steps", "2")
    assert done.returncode == 0, done.stderr
    assert "trained, 2 steps" in done.stdout
    after = load_file(folder / "base" / "model.safetensors")
    assert after.keys() == before.keys()
    record = json.loads((folder / "training.json").read_text())
    assert record["steps_planned"] == 2
    assert len(record["runs"]) == 1
    assert record["runs"][0]["commit"]
    assert train(folder, "--steps", "2").returncode == 0  # nothing left to do
    assert len(json.loads((folder / "training.json").read_text())["runs"]) == 2
    refused = train(folder, "--steps", "3")
    assert refused.returncode == 4
    assert "belongs to other settings" in refused.stderr


@pytest.mark.parametrize(
    ("name", "code"), [("codebook.safetensors", 6), ("base/tokenizer.json", 4)]
)
def test_a_damaged_file_is_named(folder, name, code):
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[: len(content) // 2])
    done = train(folder, "--steps", "2")
    assert done.returncode == code, done.stderr
    assert Path(name).name in done.stderr
    assert "Traceback" not in done.stderr


def test_without_a_compiler_it_says_so(folder):
    done = subprocess.run(
        [sys.executable, "-m", "autovla_rt.demo.train", folder],
        capture_output=True,
        text=True,
        env={"CXX": "no-such-compiler", "PATH": "/usr/bin"},
    )
    assert done.returncode == 11, done.stderr
    assert "--no-compile" in done.stderr
