"""Evaluate engines on scenes, and gate builds by it, as a user would."""

import csv
import json
import shutil
import signal
import subprocess
import sys
import time
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from demo_engine import REPO, copy_checkpoint
from safetensors.numpy import load_file, save_file

from autovla_rt.bundle import load_bundle
from autovla_rt.demo.world_engine import build_world_engine
from autovla_rt.export.graph import ort_linear
from autovla_rt.runtime.evaluation import run as run_module
from autovla_rt.runtime.evaluation.observation import observe
from autovla_rt.runtime.planner import Planner
from autovla_rt.runtime.scene import read_scene

MINIATURE = REPO / "calib_data" / "miniature"
SENSORS = MINIATURE / "sensors"
SIZE = ("--frame-size", "392x224")
COUNT = 6
FEW = ("--gate", "scenes=1")


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    """A few scenes, one of them complex."""
    folder = tmp_path_factory.mktemp("scenes")
    for path in sorted((MINIATURE / "scenes").glob("*.json"))[:COUNT]:
        shutil.copy(path, folder)
    return folder


@pytest.fixture(scope="module")
def engines(demo, tmp_path_factory):
    folder = tmp_path_factory.mktemp("engines")
    for precision in ("fp32", "int8"):
        build_world_engine(demo.base.parent, folder / precision, precision)
    yield folder
    run_module.close_engines()


def options(scenes):
    return ["--scenes", scenes, "--sensor-root", SENSORS]


def test_an_engine_against_the_truth_and_another_one(invoke, engines, scenes, tmp_path):
    words = [*options(scenes), "--engine", engines / "int8", "--against", engines / "fp32"]
    report = invoke.json("eval", *words, "--out", tmp_path / "e", *FEW, "--json")
    summary = report["summary"]
    assert summary["scenes"] == COUNT
    assert set(summary["truth"]) == {f"{of}_{h}s" for of in ("ade", "fde") for h in (1, 3, 5)}
    assert 0 < summary["against"]["action_kl"]["mean"][0] < 0.1
    assert summary["against"]["cosine"]["vision"]["mean"] > 0.99
    assert len(summary["against"]["same_action_by_step"]) == 10
    assert report["gate"]["passed"]
    assert report["protocol"]["against"]["precision"]["language"] == "fp32"
    assert json.loads((tmp_path / "e" / "evaluation.json").read_text()) == report
    rows = list(csv.DictReader((tmp_path / "e" / "evaluation.csv").open()))
    assert len(rows) == COUNT
    assert float(rows[0]["truth.ade_5s"]) > 0
    assert {"same_action.1", "action_kl.10", "reference.mode"} <= rows[0].keys()


def test_an_engine_is_its_own_twin(invoke, engines, scenes, tmp_path):
    words = [*options(scenes), "--engine", engines / "fp32", "--against", engines / "fp32"]
    report = invoke.json("eval", *words, "--out", tmp_path / "e", "--json")
    against = report["summary"]["against"]
    assert against["same_plan"][0] == against["same_mode"][0] == against["same_action"][0] == 1
    assert against["apart"]["ade_5s"]["worst"] == 0
    assert against["action_kl"]["worst"] == pytest.approx(0, abs=1e-9)
    assert against["cosine"]["language"]["worst"] == pytest.approx(1, abs=1e-6)


def test_an_answer_that_is_given_is_chosen_again(engines, scenes):
    planner = Planner.load(engines / "fp32")
    request = read_scene(sorted(scenes.glob("*.json"))[3], SENSORS)
    seen = observe(planner, request, None, thinking_token_budget=512)
    assert tuple(seen.action_logits.argmax(axis=-1)) == seen.decoded.action_indices
    other = observe(planner, request, seen.decoded, thinking_token_budget=0)
    np.testing.assert_allclose(other.action_logits, seen.action_logits, atol=1e-4)


class Outside(HTMLParser):
    """Collects what a page loads from elsewhere, and its pictures."""

    def __init__(self):
        super().__init__()
        self.urls, self.text = [], ""

    def handle_starttag(self, tag, attrs):
        self.urls += [value for name, value in attrs if name in ("src", "href")]

    def handle_data(self, data):
        self.text += data


def test_the_page_is_whole_by_itself(invoke, engines, scenes, tmp_path):
    words = [*options(scenes), "--engine", engines / "int8", "--against", engines / "fp32"]
    code, shown, _ = invoke("eval", *words, "--out", tmp_path / "e")
    assert code == 0
    assert "gate: " in shown
    page = Outside()
    page.feed((tmp_path / "e" / "evaluation.html").read_text())
    assert len(page.urls) == 3
    assert all(url.startswith("data:image/png;base64,") for url in page.urls)
    assert "Gate: " in page.text
    assert "miniature-26" in page.text


def test_a_run_that_was_killed_goes_on(invoke, engines, scenes, tmp_path, monkeypatch):
    words = [*options(scenes), "--engine", engines / "int8", "--out", tmp_path / "e", "--json"]
    whole = invoke.json("eval", *words)
    lines = tmp_path / "e" / "scenes.jsonl"
    kept = lines.read_text().splitlines(keepends=True)
    lines.write_text("".join(kept[:4]) + kept[4][:20])
    evaluated = []
    evaluate_scene = run_module.evaluate_scene

    def noted(evaluation, scene):
        evaluated.append(scene.stem)
        return evaluate_scene(evaluation, scene)

    monkeypatch.setattr(run_module, "evaluate_scene", noted)
    assert invoke.json("eval", *words) == whole
    assert len(evaluated) == COUNT - 3
    assert len(lines.read_text().splitlines()) == COUNT + 1


def test_lines_of_another_engine_are_refused(invoke, engines, scenes, tmp_path):
    out = tmp_path / "e"
    invoke.json("eval", *options(scenes), "--engine", engines / "int8", "--out", out, "--json")
    before = (out / "scenes.jsonl").read_bytes()
    said = invoke.refused(3, "eval", *options(scenes), "--engine", engines / "fp32", "--out", out)
    assert "expected lines of these engines and options" in said
    assert (out / "scenes.jsonl").read_bytes() == before


def test_processes_say_the_same(invoke, engines, scenes, tmp_path):
    words = [*options(scenes), "--engine", engines / "int8", "--json", "--threads", 1]
    one = invoke.json("eval", *words, "--out", tmp_path / "one")
    two = invoke.json("eval", *words, "--out", tmp_path / "two", "--processes", 2)
    assert one["summary"] == two["summary"]


def test_a_ray_cluster_says_the_same(invoke, engines, scenes, tmp_path):
    pytest.importorskip("ray")
    words = [*options(scenes), "--engine", engines / "int8", "--json", "--threads", 1]
    one = invoke.json("eval", *words, "--out", tmp_path / "one")
    before = signal.getsignal(signal.SIGTERM)
    ray = invoke.json("eval", *words, "--out", tmp_path / "ray", "--ray", "local")
    assert one["summary"] == ray["summary"]
    assert signal.getsignal(signal.SIGTERM) == before


def test_engines_of_other_requests_are_not_compared(invoke, demo, engines, scenes, tmp_path):
    square = tmp_path / "square"
    code, _, said = invoke("build", *demo.build_options, "--frame-size", "640x640", "--out", square)
    assert code == 0, said
    words = [*options(scenes), "--engine", engines / "int8", "--against", square]
    said = invoke.refused(12, "eval", *words, "--out", tmp_path / "e")
    assert "expected an engine with the same cameras" in said


def test_wrong_options_are_refused_before_any_work(invoke, engines, scenes, tmp_path):
    words = ["eval", *options(scenes), "--engine", engines / "int8", "--out", tmp_path / "e"]
    assert "--against" in invoke.refused(2, *words, "--gate", "")
    assert "expected scene files" in invoke.refused(
        3, "eval", *options(tmp_path), "--engine", engines / "int8", "--out", tmp_path / "e"
    )
    assert not (tmp_path / "e").exists()


def test_a_build_is_judged_and_keeps_the_report(invoke, demo, engines, scenes, tmp_path):
    out = tmp_path / "engine"
    words = [*demo.build_options, *SIZE, *options(scenes), *FEW, "--out", out]
    code, _, said = invoke("build", *words)
    assert code == 0, said
    bundle = load_bundle(out, verify=True)
    quality = bundle.manifest.quality
    assert quality.passed
    assert quality.scenes == COUNT
    assert quality.against_precision.language == "fp32"
    assert 0 < quality.measured["action_kl"] < quality.limits["action_kl"]
    report = json.loads(bundle.path("evaluation.json").read_text())
    assert report["gate"]["passed"]
    assert {"evaluation.csv", "evaluation.html"} <= bundle.manifest.files.keys()
    assert list(tmp_path.iterdir()) == [out]
    assert "passed on 6 scenes" in invoke("inspect", out)[1].replace("\n", " ")


def test_a_corrupted_scale_does_not_pass(invoke, demo, engines, scenes, tmp_path, monkeypatch):
    quantize = ort_linear.int8_per_channel
    calls = []

    def corrupted(rows):
        codes, scales = quantize(rows)
        calls.append(len(rows))
        return codes, scales * (8 if len(calls) == 20 else 1)

    monkeypatch.setattr(ort_linear, "int8_per_channel", corrupted)
    gated(invoke, demo, engines, scenes, tmp_path / "engine")


def test_a_swapped_gate_and_up_projection_does_not_pass(invoke, demo, engines, scenes, tmp_path):
    mine = copy_checkpoint(demo, tmp_path)
    path = mine.base / "model.safetensors"
    tensors = load_file(path)
    gate, up = (f"model.layers.1.mlp.{name}_proj.weight" for name in ("gate", "up"))
    tensors[gate], tensors[up] = tensors[up], tensors[gate]
    save_file(tensors, path, {"format": "pt"})
    gated(invoke, mine, engines, scenes, tmp_path / "engine")


def gated(invoke, checkpoint, engines, scenes, out):
    """Build what must not pass: it is written, and says so."""
    words = [*checkpoint.build_options, *SIZE, *options(scenes), "--against", engines / "fp32"]
    said = invoke.refused(15, "build", *words, *FEW, "--out", out)
    assert "expected plans within the gate" in said
    bundle = load_bundle(out)
    quality = bundle.manifest.quality
    assert not quality.passed
    assert quality.measured["scenes"] >= quality.limits["scenes"]
    assert not json.loads(bundle.path("evaluation.json").read_text())["gate"]["passed"]


def test_too_few_scenes_prove_nothing(invoke, engines, scenes, tmp_path):
    words = [*options(scenes), "--engine", engines / "fp32", "--against", engines / "fp32"]
    code, _, said = invoke("eval", *words, "--gate", "", "--out", tmp_path / "e")
    assert code == 15
    assert "scenes 6, limit 50" in said


def test_processes_end_with_the_one_that_started_them(engines, scenes, tmp_path):
    words = [*options(scenes), "--engine", engines / "int8", "--processes", 2]
    command = [sys.executable, "-m", "autovla_rt", "eval", *words, "--out", tmp_path / "e"]
    with subprocess.Popen([*map(str, command)], stderr=subprocess.DEVNULL) as started:
        workers = wait_for(lambda: len(found := children(started.pid)) >= 3 and found)
        started.kill()
    wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in workers))


def children(pid):
    """Return the processes that a process started (two workers and multiprocessing's tracker)."""
    found = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(child) for child in found]


def wait_for(condition, seconds=60):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if result := condition():
            return result
        time.sleep(0.05)
    raise AssertionError("did not come about")


def test_gate_options_without_scenes_are_refused(invoke, demo, tmp_path):
    words = [*demo.build_options, "--out", tmp_path / "e"]
    assert "go with --scenes" in invoke.refused(2, "build", *words, "--gate", "apart=1")
    assert "--sensor-root" in invoke.refused(2, "build", *words, "--scenes", tmp_path)
