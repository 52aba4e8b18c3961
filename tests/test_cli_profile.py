"""profile, and the options of plan that it serves: --deadline-ms and --decode."""

from __future__ import annotations

import json
import shutil

import pytest
from demo_engine import FRAMES, run

FAST = ("--threads", 1, "--requests", 3, "--warm-up", 1)


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def engine(demo, tmp_path):
    """A copy of the engine: what is saved beside it stays here."""
    return shutil.copytree(demo.engine, tmp_path / "engine")


def test_profile_tells_people_and_programs_the_same_kinds_of_things(invoke, engine, tmp_path):
    words = ("profile", "--frames", FRAMES, "--engine", engine, *FAST)
    report = invoke.json(*words, "--json", "--trace", tmp_path / "trace.json")
    assert report["protocol"]["requests"] == 3
    assert report["request_ms"]["n"] == 3
    assert "latency" not in report
    assert not (engine / "latency").exists()
    trace = json.loads((tmp_path / "trace.json").read_text())
    assert sum(event["name"] == "request" for event in trace["traceEvents"]) == 3
    done = run(*words, "--stream", cache=tmp_path)
    assert done.returncode == 0, done.stderr
    for word in ("3 requests after 1, streamed, 1 threads", "p99", "prefill", "accepted", "jitter"):
        assert word in " ".join(done.stdout.replace("│", " ").split())


def test_a_deadline_needs_what_profile_saves_and_is_then_kept_to(invoke, engine):
    words = ("plan", "--frames", FRAMES, "--engine", engine, "--threads", 1, "--mode", "slow")
    message = invoke.refused(3, *words, "--deadline-ms", 500)
    assert "was not measured" in message
    assert f"autovla-rt profile --engine {engine} --threads 1 --save" in message
    report = invoke.json(
        "profile", "--frames", FRAMES, "--engine", engine, *FAST, "--save", "--json"
    )
    assert report["latency"]["requests"] == 3
    message = invoke.refused(3, *words, "--deadline-ms", 1)
    assert "expected at least" in message
    plan = invoke.json(*words, "--deadline-ms", 60_000, "--json")
    assert plan["finish_reason"] == "stop"
    latency = report["latency"]
    least = latency["encode_ms"] + latency["prefill_ms"] + latency["actions_ms"]
    hurried = invoke.json(*words, "--deadline-ms", least + 0.01, "--json")
    assert hurried["thinking_tokens"] <= plan["thinking_tokens"]
    assert len(hurried["trajectory"]) == 10


def test_a_rebuilt_engine_forgets_what_was_measured_with_the_old_one(invoke, demo, engine):
    invoke.json("profile", "--frames", FRAMES, "--engine", engine, *FAST, "--save", "--json")
    assert (engine / "latency").is_dir()
    code, _, err = invoke("build", *demo.build_options, "--out", engine, "--note", "another")
    assert code == 0, err
    assert not (engine / "latency").exists()


def test_a_boards_power_is_in_the_profile(invoke, demo, tmp_path, monkeypatch):
    line = "RAM 1/2MB CPU [5%@700] GR3D_FREQ 12%@[1300,1300] cpu@52.5C VDD_GPU_SOC 5139mW/5000mW"
    tool = tmp_path / "tegrastats"
    tool.write_text(f"#!/bin/sh\nwhile :; do echo '{line}'; sleep 0.05; done\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    words = ("profile", "--frames", FRAMES, "--engine", demo.engine, *FAST)
    board = invoke.json(*words, "--json")["board"]
    assert board["milliwatts"] == {"VDD_GPU_SOC": [5139, 5139, 5139]}
    assert board["values"]["gpu_mhz"] == [1300, 1300, 1300]
    code, out, _ = invoke(*words)
    assert code == 0
    assert "VDD_GPU_SOC mW" in out
    assert "unknown: nvpmodel is not installed" in out


def test_another_machine_says_that_power_was_not_measured(invoke, demo):
    words = ("profile", "--frames", FRAMES, "--engine", demo.engine, *FAST)
    assert invoke.json(*words, "--json")["board"] is None
    assert "there is no tegrastats here" in " ".join(invoke(*words)[1].split())


def test_a_refinement_takes_the_passes_it_is_given(invoke, demo):
    words = ("plan", "--frames", FRAMES, "--engine", demo.engine, "--mode", "fast", "--json")
    exact = invoke.json(*words)
    assert exact == {**invoke.json(*words, "--decode", "exact"), "stages_ms": exact["stages_ms"]}
    assert invoke.json(*words, "--decode", "refine:1")["forward_passes"] == 1
    assert invoke.json(*words, "--decode", "refine:3")["forward_passes"] <= 3
    whole = invoke.json(*words, "--decode", "refine:10")
    assert whole["action_tokens"] == exact["action_tokens"]
    near = invoke.json(*words, "--decode", "refine:10:50")
    assert near["forward_passes"] <= whole["forward_passes"]
    sure = invoke.json(*words, "--decode", "refine:10:auto")
    assert sure["forward_passes"] < whole["forward_passes"]


@pytest.mark.parametrize(
    "value",
    [
        "refine",
        "refine:0",
        "refine:x",
        "refine:2:-1",
        "refine:2:nan",
        "refine:auto",
        "refine:2:auto:1",
        "fast",
        "",
    ],
)
def test_another_way_to_decode_is_wrong_usage(invoke, demo, value):
    words = ("plan", "--frames", FRAMES, "--engine", demo.engine, "--decode", value)
    assert "expected exact, refine:K, refine:K:CM or refine:K:auto" in invoke.refused(2, *words)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--frames", FRAMES, "--requests", 0), "greater than or equal to 1"),
        ((), "expected --frames or --scene, got neither"),
    ],
)
def test_profile_refuses_what_cannot_be_measured(invoke, demo, words, message):
    assert message in invoke.refused(2, "profile", *words, "--engine", demo.engine)


def test_a_trace_that_cannot_be_written_is_refused_before_any_work(invoke, demo, tmp_path):
    words = ("profile", "--frames", FRAMES, "--engine", demo.engine)
    assert "cannot be written" in invoke.refused(10, *words, "--trace", tmp_path / "no" / "t.json")
