"""Deadlines are kept by reasoning less, and only with figures of this machine and engine."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
from demo_engine import FRAMES

from autovla_rt.bundle import load_bundle
from autovla_rt.errors import InputError
from autovla_rt.runtime import deadline as deadline_module
from autovla_rt.runtime.deadline import Deadline
from autovla_rt.runtime.decode import decode
from autovla_rt.runtime.device import device_name
from autovla_rt.runtime.latency import LatencyModel, latency_path, load_latency, save_latency
from autovla_rt.runtime.latency_measurement import ContrarySampler, measure_latency
from autovla_rt.runtime.planner import Planner
from autovla_rt.runtime.sampling import Sampler, Sampling
from autovla_rt.runtime.scene import read_frames_dir
from autovla_rt.runtime.trace import Trace

PROMPT = np.array([151644, 872, 198, 151656, 151656, 100, 151645, 198], np.int64)
LATENCY = LatencyModel(
    engine_sha256="e" * 64,
    device="a test",
    threads=1,
    requests=50,
    encode_ms=20,
    prefill_ms=30,
    token_ms=4,
    actions_ms=40,
    pass_ms={1: 3.5, 9: 4.0},
)


class Clock:
    """A clock that only moves when the engine works."""

    def __init__(self):
        self.ms = 0.0

    def __call__(self):
        return self.ms / 1e3


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(deadline_module, "perf_counter", clock)
    return clock


def thinker(cot_grammar):
    """A model that would reason for ever."""

    def rule(history):
        logits = np.zeros(151665 + 2048, np.float32)
        logits[[cot_grammar.choice.slow_id, 100]] = 5
        return logits

    return rule


def run(fake_engine, cot_grammar, clock, deadline_ms):
    """Decode on an engine that takes exactly the model's 99th percentiles."""
    engine = fake_engine(thinker(cot_grammar))
    limit = Deadline(deadline_ms, LATENCY)
    clock.ms += LATENCY.encode_ms
    extend, passes = engine.extend, []

    def slow_extend(embeddings, last):
        prefill = not passes
        passes.append(1)
        clock.ms += LATENCY.prefill_ms if prefill else LATENCY.token_ms
        return extend(embeddings, last)

    engine.extend = slow_extend
    return decode(
        engine,
        cot_grammar,
        PROMPT,
        engine.embed(PROMPT),
        sampler=Sampler(Sampling()),
        mode="slow",
        thinking_token_budget=300,
        trace=Trace(),
        deadline=limit,
    )


@pytest.mark.parametrize("deadline_ms", [90, 93.9, 100, 150, 400, 1000])
def test_reasoning_ends_while_there_is_time_for_the_actions(
    fake_engine, cot_grammar, clock, deadline_ms
):
    decoded = run(fake_engine, cot_grammar, clock, deadline_ms)
    assert decoded.finish_reason == "deadline"
    assert len(decoded.action_indices) == 10
    assert clock.ms <= deadline_ms + 1e-6
    # 11 passes at the end took 4 ms each here, 40 were reserved for them
    assert decoded.thinking_tokens == pytest.approx((deadline_ms - 90) / 4, abs=2)


def test_time_enough_changes_nothing(fake_engine, cot_grammar, clock):
    decoded = run(fake_engine, cot_grammar, clock, 60_000)
    assert decoded.finish_reason == "thinking_budget"
    assert decoded.thinking_tokens == 300


@pytest.mark.parametrize("deadline_ms", [0, -5, 89.9, float("nan")])
def test_a_deadline_below_the_fast_path_is_refused_with_the_least_possible_one(deadline_ms):
    with pytest.raises(InputError, match=r"at least 90\.0 ms, .* 99th percentile of 50 requests"):
        Deadline(deadline_ms, LATENCY)


@pytest.fixture(scope="module")
def bundle(demo):
    return load_bundle(demo.engine)


@pytest.fixture(scope="module")
def request_():
    return read_frames_dir(FRAMES)


@pytest.fixture(scope="module")
def measured(bundle, request_):
    return measure_latency(bundle, request_, threads=1, requests=6)


def test_what_is_measured_is_of_this_engine_and_machine(bundle, measured):
    assert measured.engine_sha256 == bundle.identity
    assert measured.device == device_name()
    assert (measured.threads, measured.requests) == (1, 6)
    parts = measured.encode_ms, measured.prefill_ms, measured.token_ms, measured.actions_ms
    assert all(part > 0 for part in parts)
    assert measured.least_ms == parts[0] + parts[1] + parts[3]


def test_no_draft_foresees_contrary_actions(bundle, request_):
    planner = Planner.load(bundle.folder, threads=1)
    for seed in range(3):
        prompted = planner.encode(request_)
        sampler = ContrarySampler(Sampling(seed=seed))
        draft = planner.draft(request_)
        decoded = planner.answer(prompted, sampler=sampler, mode="fast", draft=draft)
        assert decoded.forward_passes == 10  # the first action rides with the prefill


def test_a_slow_plan_with_a_deadline_is_cut_short(bundle, request_, measured):
    planner = Planner.load(bundle.folder, threads=1)
    planner.plan(request_, mode="slow")
    limit = Deadline(measured.least_ms + 2 * measured.token_ms, measured)
    plan = planner.plan(request_, mode="slow", deadline=limit)
    whole = planner.plan(request_, mode="slow")
    assert len(plan.trajectory) == 10
    assert plan.thinking_tokens <= whole.thinking_tokens
    assert whole.reasoning.startswith(plan.reasoning.rstrip())


@pytest.fixture
def folder(bundle, tmp_path):
    """A bundle's folder and identity, without its files."""
    return SimpleNamespace(folder=tmp_path, identity=bundle.identity)


def saved(folder, **changes):
    model = LATENCY.model_copy(update={"engine_sha256": folder.identity, **changes})
    return model, save_latency(folder, model)


def test_a_latency_model_comes_back(folder):
    model, path = saved(folder)
    assert load_latency(folder, "a test", 1) == model
    assert path == latency_path(folder, "a test", 1)
    assert path.name == "a-test-1.json"


def test_every_core_is_a_measurement_of_its_own(folder):
    model, path = saved(folder, threads=None)
    assert path.name == "a-test-all.json"
    assert load_latency(folder, "a test", None) == model
    with pytest.raises(InputError, match="was not measured"):
        load_latency(folder, "a test", 1)


def test_without_a_measurement_here_a_deadline_is_refused(folder):
    saved(folder)
    for device, threads in (("another", 1), ("a test", 2)):
        with pytest.raises(InputError, match=r"was not measured: .*\nMeasure it here: .*--save"):
            load_latency(folder, device, threads)


def test_figures_of_another_engine_or_machine_are_refused(folder):
    _, path = saved(folder, engine_sha256="f" * 64)
    with pytest.raises(InputError, match=r"expected the latency of engine .*got that of ffff"):
        load_latency(folder, "a test", 1)
    _, other = saved(folder, device="b")
    other.rename(path)
    with pytest.raises(InputError, match=r"on a test with 1 threads, got .* on b with 1\."):
        load_latency(folder, "a test", 1)


@pytest.mark.parametrize("spoil", [lambda text: text[:40], lambda _: "[]", lambda t: t + "}"])
def test_a_damaged_file_is_refused(folder, spoil):
    _, path = saved(folder)
    path.write_text(spoil(path.read_text()))
    with pytest.raises(InputError, match="expected a latency model, got"):
        load_latency(folder, "a test", 1)


def test_unknown_keys_are_refused(folder):
    _, path = saved(folder)
    path.write_text(json.dumps({**json.loads(path.read_text()), "more": 1}))
    with pytest.raises(InputError, match="more"):
        load_latency(folder, "a test", 1)
