"""Streams: every plan is what the planner makes of the request alone, for less work."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from autovla_rt.config import CAMERAS
from autovla_rt.demo.drive import Drive, DriveSettings, draw_drive_world
from autovla_rt.demo.drivers import Decision, ExpertDriver, WorldCameras, request_of
from autovla_rt.errors import InputError
from autovla_rt.runtime import frames as frames_module
from autovla_rt.runtime.draft import Refinement
from autovla_rt.runtime.planner import Planner
from autovla_rt.runtime.sampling import Sampling
from autovla_rt.runtime.stream import Stream

COST = ("stages_ms", "forward_passes", "drafted", "accepted")


@pytest.fixture(scope="module")
def planner(demo):
    return Planner.load(demo.engine, threads=1)


class Recording:
    """The expert drives; what a model would have been asked is kept."""

    def __init__(self):
        self._expert, self._cameras, self.asked = ExpertDriver(), WorldCameras(), []

    def decide(self, moments) -> Decision:
        now = moments[-1]
        request = request_of(now, self._cameras.look(moments))
        self.asked.append((request, now.time))
        return self._expert.decide(moments)


@pytest.fixture(scope="module")
def asked():
    """Requests of a drive of 5 s with their times."""
    recording = Recording()
    for _ in Drive(draw_drive_world(3), recording, DriveSettings(5.0, latency_ms=0.0)):
        pass
    return recording.asked


def said(plan):
    return {key: value for key, value in plan.as_dict().items() if key not in COST}


@pytest.mark.parametrize("mode", ["auto", "fast", "slow"])
def test_streamed_plans_equal_those_of_single_requests(planner, asked, mode):
    alone = [planner.plan(request, mode=mode) for request, _ in asked]
    stream = Stream(planner)
    plans = [stream.plan(r, time=time, mode=mode) for r, time in asked]
    assert [said(plan) for plan in plans] == [said(plan) for plan in alone]
    assert sum(p.forward_passes for p in plans) < sum(p.forward_passes for p in alone)


def test_half_of_the_frames_are_known_from_the_third_request_on(planner, asked):
    stream = Stream(planner)
    known = []
    for request, time in asked[:6]:
        before = stream.seen.features.hits
        stream.plan(request, time=time, mode="fast")
        known.append(stream.seen.features.hits - before)
    assert known == [0, 0, 3, 3, 3, 3]
    assert len(stream.seen.features) == 12


def test_a_frame_changed_in_place_is_seen(planner, asked):
    request, time = asked[0]
    frames = {c: [np.asarray(f).copy() for f in request.frames[c]] for c in CAMERAS}
    request = replace(request, frames=frames)
    stream = Stream(planner)
    stream.plan(request, time=time)
    for array in frames["front"]:
        array[60:160] = 0
    changed = stream.plan(request, time=time + 0.5)
    assert said(changed) == said(planner.plan(request))
    assert stream.seen.features.hits == 4  # the other cameras'


def test_equal_pairs_are_encoded_once(planner, asked, monkeypatch):
    request, time = asked[0]
    still = {camera: [request.frames[camera][0]] * 4 for camera in CAMERAS}
    batches, encode = [], planner._cameras._pairs._engine.encode
    monkeypatch.setattr(
        planner._cameras._pairs._engine,
        "encode",
        lambda patches, grid: batches.append(len(patches)) or encode(patches, grid),
    )
    standing = replace(request, frames=still)
    streamed = Stream(planner).plan(standing, time=time)
    assert batches == [3]
    assert said(streamed) == said(planner.plan(standing))


@pytest.mark.parametrize("pairs", [0, 1, 5])
def test_a_small_cache_changes_nothing(planner, asked, pairs):
    small, usual = Stream(planner, cached_pairs=pairs), Stream(planner)
    for request, time in asked[:4]:
        plan = small.plan(request, time=time)
        assert said(plan) == said(usual.plan(request, time=time))
        assert len(small.seen.features) <= pairs


def test_drafts_that_do_not_pay_get_shorter_and_plans_stay(planner, asked):
    dear = Stream(planner, pass_ms={1: 1.0, 2: 1.0, 3: 100.0})
    usual = Stream(planner)
    drafted = {dear: 0, usual: 0}
    for request, time in asked:
        plans = {stream: stream.plan(request, time=time, mode="fast") for stream in drafted}
        assert said(plans[dear]) == said(plans[usual])
        for stream, plan in plans.items():
            drafted[stream] += plan.drafted
    assert drafted[dear] < drafted[usual] / 2


def test_a_stream_learns_which_guesses_are_right(planner, asked):
    dear, usual = Stream(planner, pass_ms={1: 1.0, 10: 5.5}), Stream(planner)
    drafted = [
        [stream.plan(request, time=time, mode="fast").drafted for stream in (dear, usual)]
        for request, time in asked
    ]
    assert drafted[0][0] == drafted[0][1]  # nothing is known yet
    assert sum(few for few, _ in drafted[1:]) < 0.8 * sum(many for _, many in drafted[1:])


def test_three_new_frames_of_a_request_are_resized(planner, asked, monkeypatch):
    decoded, decode = [], frames_module._decode
    monkeypatch.setattr(
        frames_module, "_decode", lambda source: decoded.append(source.digest) or decode(source)
    )
    stream = Stream(planner)
    counts = []
    for request, time in asked[:4]:
        stream.plan(request, time=time, mode="fast")
        counts.append(len(decoded))
    assert np.diff([0, *counts]).tolist() == [12, 3, 3, 3]


def test_samples_are_the_same_in_a_stream(planner, asked):
    stream = Stream(planner)
    for index, (request, time) in enumerate(asked[:4]):
        sampling = Sampling(0.8, seed=index)
        plan = stream.plan(request, time=time, sampling=sampling)
        assert said(plan) == said(planner.plan(request, sampling=sampling))


def test_a_time_that_jumps_back_is_refused_until_the_stream_begins_anew(planner, asked):
    stream = Stream(planner)
    (first, time), (second, later) = asked[:2]
    stream.plan(first, time=later, mode="fast")
    for wrong in (later, time, float("nan")):
        with pytest.raises(InputError, match=r"later than the last request's (.|\n)* reset\(\)"):
            stream.plan(second, time=wrong, mode="fast")
    stream.reset()
    plan = stream.plan(second, time=time, mode="fast")
    assert said(plan) == said(planner.plan(second, mode="fast"))


def test_a_gap_longer_than_the_plan_starts_from_the_request_alone(planner, asked):
    stream = Stream(planner)
    (first, time), (second, _) = asked[:2]
    stream.plan(first, time=time, mode="fast")
    plan = stream.plan(second, time=time + 60, mode="fast")
    assert plan.forward_passes == planner.plan(second, mode="fast").forward_passes


def test_ten_passes_of_refinement_are_exact_and_one_is_one(planner, asked):
    request = asked[0][0]
    exact = planner.plan(request, mode="fast")
    assert planner.plan(request, mode="fast", refinement=Refinement(10)).action_tokens == (
        exact.action_tokens
    )
    assert planner.plan(request, mode="fast", refinement=Refinement(1)).forward_passes == 1
    close = planner.plan(request, mode="fast", refinement=Refinement(10, tolerance=0.5))
    assert close.forward_passes <= exact.forward_passes
    distance = np.abs(np.array(close.trajectory) - np.array(exact.trajectory))[:, :2]
    assert distance.max() < 3


def test_a_mode_that_is_none_is_refused_before_any_work(planner, asked):
    stream = Stream(planner)
    with pytest.raises(InputError, match="mode must be auto, fast or slow, got 'deep'"):
        stream.plan(asked[0][0], time=0.0, mode="deep")
    assert len(stream.seen.frames) == 0


@pytest.mark.parametrize("sampling", [Sampling(1.0), Sampling(repetition_penalty=1.05)])
def test_a_refinement_is_greedy(planner, asked, sampling):
    with pytest.raises(InputError, match="temperature 0 and repetition penalty 1"):
        planner.plan(asked[0][0], sampling=sampling, refinement=Refinement(2))


@pytest.mark.parametrize(
    "of", [(0, 0.0), (2, -0.1), (2, float("nan")), (2, 0.0, -1.0), (2, 0.0, float("inf"))]
)
def test_an_impossible_refinement_is_refused(of):
    with pytest.raises(InputError, match="one pass or more, a tolerance from 0 m"):
        Refinement(*of)
