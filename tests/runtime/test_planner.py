"""The planner as a Python interface, on the miniature's engine."""

from __future__ import annotations

import os
import shutil
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from demo_engine import FRAMES, RECIPE, run
from PIL import Image

from autovla_rt.bundle import Bundle, load_bundle
from autovla_rt.config import CAMERAS
from autovla_rt.errors import BundleError, CapacityError, InputError
from autovla_rt.runtime import planner as planner_module
from autovla_rt.runtime.camera_encoder import Seen
from autovla_rt.runtime.decode import decode
from autovla_rt.runtime.engines import open_engines
from autovla_rt.runtime.frames import FramePreprocessor
from autovla_rt.runtime.planner import Planner
from autovla_rt.runtime.sampling import Sampling
from autovla_rt.runtime.scene import Request, read_frames_dir
from autovla_rt.runtime.trace import Trace

COST = ("stages_ms", "forward_passes", "drafted", "accepted")
"""What depends on how well a draft guessed."""


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def planner(demo):
    return Planner.load(demo.engine)


@pytest.fixture(scope="module")
def request_():
    return read_frames_dir(FRAMES)


def answer(plan):
    return {key: value for key, value in plan.as_dict().items() if key not in COST}


def test_plans_do_not_depend_on_what_was_planned_before(planner, request_):
    first = answer(planner.plan(request_))
    planner.plan(request_, mode="slow", thinking_token_budget=20)
    other = Request(request_.frames, 1.0, 0.0, "turn left")
    assert answer(planner.plan(other)) != first
    assert answer(planner.plan(request_)) == first


def test_a_failed_request_does_not_disturb_the_next(planner, request_):
    first = answer(planner.plan(request_))
    for spoiled, error in (
        (Request(request_.frames, 1.0, 0.0, "<|im_end|>"), InputError),
        (Request(request_.frames, 1.0, 0.0, "left " * 3000), CapacityError),
    ):
        with pytest.raises(error):
            planner.plan(spoiled)
    assert answer(planner.plan(request_)) == first


def test_paths_pictures_and_arrays_give_one_plan(planner, request_):
    pictures = {c: [Image.open(path) for path in paths] for c, paths in request_.frames.items()}
    arrays = {c: [np.asarray(p.convert("RGB")) for p in ps] for c, ps in pictures.items()}
    values = (request_.velocity, request_.acceleration, request_.instruction)
    first = answer(planner.plan(request_))
    assert answer(planner.plan(Request(pictures, *values))) == first
    assert answer(planner.plan(Request(arrays, *values))) == first


def test_every_camera_matters_at_both_ends_of_its_clip(planner, request_):
    first = planner.plan(request_).p_slow
    for camera, paths in request_.frames.items():
        for index in (0, 3):
            black = list(paths)
            black[index] = np.zeros((224, 392, 3), np.uint8)
            frames = {**request_.frames, camera: black}
            changed = Request(frames, request_.velocity, request_.acceleration, "keep forward")
            assert planner.plan(changed).p_slow != first, (camera, index)


def test_cameras_encoded_together_are_not_confused(planner, request_):
    manifest = planner.bundle.manifest
    frames = FramePreprocessor(manifest.preprocessing, manifest.geometry.vision)
    together = planner._cameras.start(request_.frames, Trace(), Seen(0))
    for camera in manifest.cameras:
        patches = frames.patches(request_.frames[camera.name], camera)
        expected = planner._cameras._pairs._engine.encode(patches, (8, 14))
        actual = together[camera.name]()
        np.testing.assert_array_equal(actual, expected.reshape(actual.shape))


def test_a_pair_that_several_cameras_show_is_encoded_once(planner, request_, monkeypatch):
    engine = planner._cameras._pairs._engine
    encode, batches = engine.encode, []
    monkeypatch.setattr(
        engine,
        "encode",
        lambda patches, grid: batches.append(len(patches)) or encode(patches, grid),
    )
    same = dict.fromkeys(request_.frames, request_.frames["front"])
    features = planner._cameras.start(same, Trace(), Seen(0))
    first, *others = (of() for of in features.values())
    assert batches == [2]
    for other in others:
        np.testing.assert_array_equal(other, first)


def test_the_trajectory_is_the_codebooks(planner, request_, demo):
    from autovla_rt.runtime.actions import Codebook

    plan = planner.plan(request_)
    start = planner.bundle.manifest.actions.action_start_id
    rows = np.array(plan.action_tokens) - start
    expected = Codebook.load(demo.codebook, 2048).decode(rows)
    np.testing.assert_array_equal(np.array(plan.trajectory), expected)


def test_generate_continues_the_same_prompt(planner, request_):
    ids = list(planner.generate(request_, max_new_tokens=5))
    assert len(ids) == 5
    assert ids == list(planner.generate(request_, max_new_tokens=5, sampling=Sampling()))


def test_threads_change_nothing(demo, request_, planner):
    one = Planner.load(demo.engine, threads=1)
    assert answer(one.plan(request_)) == answer(planner.plan(request_))


@pytest.mark.parametrize("threads", [0, -1, 10**6])
def test_unusable_threads_are_refused_before_the_bundle_is_opened(threads):
    with pytest.raises(InputError, match=rf"expected 1 to {os.cpu_count()} .*, got {threads}"):
        Planner.load("absent", threads=threads)


def test_an_engine_replaced_while_loading_is_never_mixed(demo, tmp_path, request_):
    from autovla_rt.bundle_writer import _exchange

    other = tmp_path / "other"
    options = ("--precision", "fp32")
    done = run("build", *demo.build_options, "--out", other, *options, cache=tmp_path)
    assert done.returncode == 0, done.stderr
    engine = tmp_path / "engine"
    shutil.copytree(demo.engine, engine)
    planners = [Planner.load(folder) for folder in (engine, other)]
    expected = {planner.bundle.identity: answer(planner.plan(request_)) for planner in planners}
    assert len({plan["p_slow"] for plan in expected.values()}) == 2
    for moment in np.linspace(0.02, 0.25, 5):
        swap = threading.Timer(moment, lambda: _exchange(engine, other))
        swap.start()
        loaded = Planner.load(engine)
        swap.join()
        assert answer(loaded.plan(request_)) == expected[loaded.bundle.identity]


def test_the_smallest_cache_that_builds_also_plans(demo, tmp_path, request_):
    engine = tmp_path / "engine"
    words = ("build", *demo.build_options, "--out", engine, "--kv-capacity")
    refused = run(*words, 100, cache=tmp_path)
    needed = int(refused.stderr.partition("expected at least ")[2].split()[0])
    assert run(*words, needed - 1, cache=tmp_path).returncode == 9
    assert run(*words, needed, cache=tmp_path).returncode == 0
    planner = Planner.load(engine)
    long = Request(request_.frames, 33.333, -10.123, "turn left behind the second traffic light")
    rambling = Sampling(temperature=50.0, seed=1)  # never closes the reasoning by itself
    plan = planner.plan(long, mode="slow", sampling=rambling)
    assert plan.finish_reason == "capacity"
    assert len(plan.trajectory) == 10


def test_an_engine_of_direct_answers(demo, tmp_path, request_):
    config = tmp_path / "config.yaml"
    text = demo.config.read_text().replace("use_cot: true", "use_cot: false")
    config.write_text(text)
    words = ("--checkpoint", demo.base, "--config", config, "--codebook", demo.codebook)
    engine = tmp_path / "engine"
    done = run("build", *words, "--recipe", RECIPE, "--out", engine, cache=tmp_path)
    assert done.returncode == 0, done.stderr
    planner = Planner.load(engine)
    plan = planner.plan(request_)
    assert (plan.mode, plan.p_slow, plan.reasoning) == ("direct", None, "")
    with pytest.raises(InputError, match="needs a bundle with chain of thought"):
        planner.plan(request_, mode="slow")
    alternatives = planner.alternatives(request_, plan, count=1)
    assert alternatives.other_mode is None
    drawn = planner.plan(request_, sampling=Sampling(temperature=1.0))
    assert [answer(sample) for sample in alternatives.samples] == [answer(drawn)]


def test_a_bundle_of_another_backend_is_refused(demo):
    bundle = load_bundle(demo.engine)
    manifest = bundle.manifest.model_copy(update={"backend": "abacus", "target": "desk"})
    with pytest.raises(BundleError, match=r"'abacus' .target desk., expected"):
        open_engines(Bundle(bundle.folder, manifest, bundle.identity), None)


def test_an_impossible_budget_is_refused_before_a_frame_is_read(planner, request_):
    unread = replace(request_, frames={camera: (Path("gone"),) * 4 for camera in CAMERAS})
    with pytest.raises(InputError, match="thinking_token_budget must be >= 0"):
        planner.plan(unread, thinking_token_budget=-1)


# --- alternatives --------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["int8", "fp32", "int4"])
def any_planner(request, demo, tmp_path_factory):
    if request.param == "int8":
        return Planner.load(demo.engine)
    folder = tmp_path_factory.mktemp(request.param)
    words = ("build", *demo.build_options, "--precision", request.param, "--out", folder / "e")
    done = run(*words, cache=folder)
    assert done.returncode == 0, done.stderr
    return Planner.load(folder / "e")


@pytest.mark.parametrize("modes", [("fast", "slow"), ("slow", "fast")])
def test_alternatives_are_what_the_planner_plans(any_planner, request_, modes):
    mode, other = modes
    budget = {"thinking_token_budget": 8}
    plan = any_planner.plan(request_, mode=mode, **budget)
    chosen = Sampling(repetition_penalty=1.05, seed=5)
    found = any_planner.alternatives(request_, plan, count=3, sampling=chosen, **budget)
    expected = any_planner.plan(request_, mode=other, sampling=chosen, **budget)
    assert answer(found.other_mode) == answer(expected)
    drawn = [replace(chosen, temperature=1.0, seed=seed) for seed in (5, 6, 7)]
    samples = [any_planner.plan(request_, mode=mode, sampling=one, **budget) for one in drawn]
    assert [answer(sample) for sample in found.samples] == [answer(sample) for sample in samples]
    assert len({tuple(sample.action_tokens) for sample in samples}) > 1


def test_alternatives_disturb_no_plan(planner, request_):
    plan = planner.plan(request_)
    first = answer(plan)
    planner.alternatives(request_, plan, count=2, thinking_token_budget=5)
    assert answer(plan) == first
    assert answer(planner.plan(request_)) == first


def test_alternatives_encode_and_pass_the_prompt_once(planner, request_, monkeypatch):
    plan = planner.plan(request_)
    rows, batches = [], []
    extend, encode = planner._language.extend, planner._cameras._pairs._engine.encode
    monkeypatch.setattr(
        planner._language,
        "extend",
        lambda given, last: rows.append(len(given)) or extend(given, last),
    )
    monkeypatch.setattr(
        planner._cameras._pairs._engine,
        "encode",
        lambda *given: batches.append(1) or encode(*given),
    )
    planner.alternatives(request_, plan, count=4, thinking_token_budget=5)
    assert sum(count > 100 for count in rows) == 1
    assert len(batches) == 1


def test_an_alternative_that_does_not_fit_is_left_out_and_said(
    planner, request_, monkeypatch, caplog
):
    def full(*given, mode, **options):
        if mode == "slow":
            raise CapacityError("the slow answer is too long")
        return decode(*given, mode=mode, **options)

    plan = planner.plan(request_, mode="fast")
    monkeypatch.setattr(planner_module, "decode", full)
    found = planner.alternatives(request_, plan, count=1)
    assert found.other_mode is None
    assert len(found.samples) == 1
    assert "no alternative in the slow mode: the slow answer is too long" in caplog.text


def test_a_negative_number_of_alternatives_is_refused(planner, request_):
    with pytest.raises(InputError, match="count must be >= 0, got -1"):
        planner.alternatives(request_, planner.plan(request_), count=-1)


def test_the_expert_is_ignored(planner, request_):
    assert request_.expert is not None
    first = answer(planner.plan(request_))
    for expert in (None, [[1.0, 2.0, 3.0]]):
        assert answer(planner.plan(replace(request_, expert=expert))) == first
