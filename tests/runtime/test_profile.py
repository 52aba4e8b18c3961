"""A profile measures what was run, and says with what."""

import json
import math
import os
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from demo_engine import FRAMES
from safetensors.numpy import load_file

from autovla_rt.bundle import load_bundle
from autovla_rt.config import CAMERAS
from autovla_rt.errors import InputError
from autovla_rt.runtime.device import device_name
from autovla_rt.runtime.draft import Refinement
from autovla_rt.runtime.planner import Planner
from autovla_rt.runtime.profile import (
    ProfileSettings,
    chrome_trace,
    moving,
    percentiles,
    profile,
    summary,
)
from autovla_rt.runtime.scene import read_frames_dir

SETTINGS = ProfileSettings(requests=4, warm_up=2, threads=1)


@pytest.fixture(scope="module")
def bundle(demo):
    return load_bundle(demo.engine)


@pytest.fixture(scope="module")
def request_():
    return read_frames_dir(FRAMES)


@pytest.fixture(scope="module")
def measured(bundle, request_):
    return profile(bundle, request_, SETTINGS)


def test_requests_are_planned_as_ever(bundle, request_, measured):
    plan = Planner.load(bundle.folder, threads=1).plan(request_)
    assert len(measured) == SETTINGS.requests
    for one in measured:
        assert one.plan.trajectory == plan.trajectory
        assert one.plan.forward_passes == plan.forward_passes


def test_calls_and_stages_lie_within_their_request(measured):
    for one in measured:
        inside = [*one.spans, *one.calls]
        assert all(one.start_ns <= x.start_ns <= x.end_ns <= one.end_ns for x in inside)
        passes = [call for call in one.calls if call.name == "pass"]
        assert len(passes) == one.plan.forward_passes
        assert sum(call.ms for call in one.calls) < one.ms
        assert sum(one.plan.stages_ms.values()) <= one.ms
    for before, after in pairwise(measured):
        assert before.end_ns <= after.start_ns


def test_the_summary_says_what_was_measured_and_how(bundle, measured):
    report = summary(measured, bundle, SETTINGS)
    assert report == json.loads(json.dumps(report)) | {
        "passes_ms": report["passes_ms"],
        "forward_passes": report["forward_passes"],
    }
    assert report["engine"]["sha256"] == bundle.identity
    assert report["device"]["cores"] == os.cpu_count()
    assert report["protocol"] == {
        "requests": 4,
        "warm_up": 2,
        "threads": 1,
        "streamed": False,
        "mode": "auto",
        "thinking_token_budget": 512,
        "refinement": None,
        "pass_ms": {},
    }
    times = sorted(one.ms for one in measured)
    assert report["request_ms"]["max"] == times[-1]
    assert times[0] <= report["request_ms"]["p50"] <= report["request_ms"]["p99"] <= times[-1]
    assert sum(report["modes"].values()) == 4
    assert sum(of["n"] for of in report["passes_ms"].values()) == sum(
        one.plan.forward_passes for one in measured
    )
    assert 0 < report["outside_engine_share"]["p50"] < 1
    assert report["accepted_tokens"] == sum(one.plan.accepted for one in measured)
    assert report["peak_rss_bytes"] > 50e6
    stages = {
        "image_decode",
        "preprocess",
        "vision",
        "prompt",
        "draft",
        "prefill",
        "decision",
        "actions",
    }
    assert stages < report["stages_ms"].keys()
    prefix = load_file(bundle.path("prefix_kv.safetensors"))["key.0"].shape[1]
    assert report["reused_tokens"]["p50"] == prefix > 0


def test_a_stream_reuses_half_of_the_frames(bundle, request_):
    settings = replace(SETTINGS, streamed=True, mode="fast")
    measured = profile(bundle, request_, settings)
    assert [one.reused_pairs for one in measured] == [3] * 4
    patches = [sum(c.rows for c in one.calls if c.name == "vision") for one in measured]
    assert patches == [3 * 112] * 4
    report = summary(measured, bundle, settings)
    assert report["protocol"]["streamed"]
    assert report["modes"] == {"fast": 4}


def test_a_refinement_is_measured_as_one(bundle, request_):
    settings = replace(SETTINGS, mode="fast", refinement=Refinement(2, 0.1))
    measured = profile(bundle, request_, settings)
    assert all(one.plan.forward_passes <= 2 for one in measured)
    report = summary(measured, bundle, settings)
    assert report["protocol"]["refinement"] == {
        "passes": 2,
        "tolerance": 0.1,
        "certainty": 0.0,
    }


def test_moving_frames_move_on_by_one_and_are_never_equal(request_):
    requests = moving(request_)
    first, second, third = (next(requests) for _ in range(3))
    for camera in CAMERAS:
        for before, after in ((first, second), (second, third)):
            for old, new in zip(before.frames[camera][1:], after.frames[camera], strict=False):
                np.testing.assert_array_equal(old, new)
        everything = [*first.frames[camera], *third.frames[camera][2:]]
        assert len({frame.tobytes() for frame in everything}) == 6


def test_percentiles():
    found = percentiles(range(101))
    assert found == {"n": 101, "p50": 50, "p90": 90, "p99": 99, "max": 100, "jitter": 49}
    assert percentiles([3.0]) == {"n": 1, "p50": 3, "p90": 3, "p99": 3, "max": 3, "jitter": 0}


def test_the_trace_has_every_span_and_call(measured):
    trace = json.loads(json.dumps(chrome_trace(measured)))
    events = trace["traceEvents"]
    assert len(events) == sum(1 + len(one.spans) + len(one.calls) for one in measured)
    assert {event["ph"] for event in events} == {"X"}
    assert all(math.isfinite(e["ts"]) and e["dur"] >= 0 for e in events)
    assert {event["cat"]: event["tid"] for event in events} == {
        "request": 0,
        "stage": 1,
        "engine": 2,
    }


def test_this_machine_has_a_name():
    assert device_name().strip()


@pytest.mark.parametrize("wrong", [{"requests": 0}, {"warm_up": -1}])
def test_nothing_to_measure_is_refused(wrong):
    with pytest.raises(InputError, match="one request or more and a warm-up from 0"):
        ProfileSettings(**wrong)
