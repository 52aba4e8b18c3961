"""Sampled answers: made by the runtime, remembered exactly, and drawn from its distribution."""

from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch
from threadpoolctl import threadpool_info

from autovla_rt.demo.driven_scenes import driven_scene
from autovla_rt.demo.drivers import (
    FRAME_HEIGHT,
    FRAME_WIDTH,
    ConstantVelocityDriver,
    ExpertDriver,
    ModelDriver,
    request_of,
)
from autovla_rt.demo.group_batch import pack_groups
from autovla_rt.demo.policy import choice_logits, open_policy
from autovla_rt.demo.policy_loss import policy_terms
from autovla_rt.demo.render import render_moments
from autovla_rt.demo.rewards import nearness
from autovla_rt.demo.rollout_engine import RolloutEngine
from autovla_rt.demo.rollout_pool import RolloutPool, SceneOrder
from autovla_rt.demo.rollouts import STAGES, RecordingSampler, sample_group
from autovla_rt.demo.scenes import collision, record_scene
from autovla_rt.runtime.planner import Planner
from autovla_rt.runtime.sampling import Sampler, Sampling

CHECKPOINT = Path(__file__).parents[2] / "demo" / "checkpoint"
DECISION, REASONING, ACTION = range(3)


@pytest.fixture(scope="module")
def policy():
    return open_policy(CHECKPOINT)


@pytest.fixture(scope="module")
def planner(policy, tmp_path_factory):
    engine = RolloutEngine(CHECKPOINT, tmp_path_factory.mktemp("rollouts") / "engine")
    return Planner.load(engine.build(policy.model), threads=1)


@pytest.fixture(scope="module")
def undecided(planner, scenes):
    """A scene in which the model might reason or not."""
    for scene in scenes:
        prompted = planner.encode(request_of(scene.now, frames(scene)))
        answer = planner.answer(prompted, sampler=Sampler(Sampling()))
        if 0.1 < answer.p_slow < 0.9:
            return scene
    pytest.fail("the model is sure in all of these scenes")


@pytest.fixture(scope="module")
def groups(planner, undecided, scenes):
    return [sample_group(planner, scene, 6, 1.0) for scene in (undecided, *scenes[:3])]


def frames(scene):
    return render_moments(scene.moments, FRAME_WIDTH, FRAME_HEIGHT)


def test_an_answers_choices_are_what_it_holds(groups):
    modes = set()
    for group in groups:
        for rollout in group.rollouts:
            ids = rollout.decoded.output_ids
            stages = [choice.stage for choice in rollout.choices]
            assert stages == sorted(stages)
            assert stages.count(DECISION) == 1
            assert stages.count(ACTION) == 10
            modes.add(rollout.decoded.mode)
            closing = rollout.decoded.mode == "slow"  # choosing to end is a choice, too
            assert stages.count(REASONING) == rollout.decoded.thinking_tokens + closing
            for choice in rollout.choices:
                assert ids[choice.position - len(group.prompt_ids)] == choice.token_id
                assert choice.log_probability <= 0
    assert modes == {"fast", "slow"}


def test_nearness_is_the_plans(planner, undecided, groups):
    for rollout in groups[0].rollouts:
        plan = planner.trajectory(rollout.decoded)
        assert rollout.nearness == nearness(plan, undecided.trajectory)
    assert len({rollout.nearness for rollout in groups[0].rollouts}) > 1


def test_equal_seeds_give_equal_answers_and_others_do_not(planner, undecided, groups):
    again = sample_group(planner, undecided, 6, 1.0)
    assert again.rollouts == groups[0].rollouts
    assert len({r.decoded.action_ids for r in again.rollouts}) > 1


def test_decisions_are_drawn_as_often_as_they_are_probable(planner, undecided):
    drawn = sample_group(planner, undecided, 300, 1.0).rollouts
    slow = np.array([rollout.decoded.mode == "slow" for rollout in drawn])
    wanted = drawn[0].decoded.p_slow
    assert abs(slow.mean() - wanted) < 4 * np.sqrt(wanted * (1 - wanted) / len(slow))
    firsts = [r.choices[1] for r in drawn if r.decoded.mode == "fast"]
    common = max({c.token_id for c in firsts}, key=[c.token_id for c in firsts].count)
    of_common = [c for c in firsts if c.token_id == common]
    share, wanted = len(of_common) / len(firsts), np.exp(of_common[0].log_probability)
    assert abs(share - wanted) < 4 * np.sqrt(wanted * (1 - wanted) / len(firsts))


@pytest.mark.slow
def test_processes_sample_what_one_would(policy, planner, tmp_path):
    bundle = RolloutEngine(CHECKPOINT, tmp_path / "engine").build(policy.model)
    orders = [SceneOrder(7, driven=False), SceneOrder(8, driven=True), SceneOrder(9, driven=False)]
    with RolloutPool(2, 3, 1.0) as pool:
        groups = pool.sample(bundle, 0, orders)
    scenes = [record_scene(7), driven_scene(8, ModelDriver(planner)), record_scene(9)]
    for group, scene in zip(groups, scenes, strict=True):
        alone = sample_group(planner, scene, 3, 1.0)
        assert group.rollouts == alone.rollouts
        np.testing.assert_array_equal(group.features, alone.features)


def test_reasoning_that_was_cut_takes_its_choices_back():
    sampler = RecordingSampler(Sampling(1.0))
    sure = np.array([0.0, 50.0], np.float32)
    for position, (token, stage) in enumerate([(7, "decision"), (8, "reasoning"), (9, "action")]):
        chosen = sampler.choose(sure, np.array([3, token]), [0] * (4 + position), stage=stage)
        assert chosen == 1
    assert [c.token_id for c in sampler.choices(4, (7, 8, 9))] == [7, 8, 9]
    closed = sampler.choices(4, (7, 5, 9))  # the closing took the place of the reasoning's token
    assert [(c.position, STAGES[c.stage]) for c in closed] == [(4, "decision"), (6, "action")]


def test_reasoning_without_an_end_is_closed(planner, undecided):
    prompted = planner.encode(request_of(undecided.now, frames(undecided)))
    sampler = RecordingSampler(Sampling(1.0))
    decoded = planner.answer(prompted, sampler=sampler, mode="slow", thinking_token_budget=7)
    assert decoded.finish_reason == "thinking_budget"
    stages = [c.stage for c in sampler.choices(len(prompted.ids), decoded.output_ids)]
    assert stages.count(ACTION) == 10
    assert 7 - 2 <= stages.count(REASONING) <= 7


def test_torch_sees_the_probabilities_that_the_engine_drew_from(policy, groups):
    """All answers packed behind one prompt, against the runtime's KV cache."""
    batch = pack_groups(groups, policy.positions_of)
    with torch.no_grad():
        logits = choice_logits(policy.model, batch, 1.0)
    stages, targets = torch.from_numpy(batch.stages), torch.from_numpy(batch.targets)
    terms = policy_terms(logits, logits, policy.masks[stages], targets)
    seen = torch.from_numpy(batch.log_probabilities)
    for index in range(len(STAGES)):
        of_stage = stages == index
        torch.testing.assert_close(
            terms.log_probability[of_stage], seen[of_stage], rtol=0, atol=2e-4
        )


def test_features_are_those_of_the_frames(planner, scenes, groups):
    others = sample_group(planner, scenes[2], 1, 1.0)
    assert others.features.shape == (168, 256)
    assert not np.allclose(others.features, groups[1].features)  # of scenes[0]
    prompted = planner.encode(request_of(scenes[2].now, frames(scenes[2])))
    video = np.flatnonzero(prompted.ids == np.bincount(prompted.ids).argmax())
    np.testing.assert_array_equal(prompted.embeddings[video], others.features)


@pytest.mark.usefixtures("planner")
def test_a_planner_keeps_blas_to_one_thread():
    blas = [pool for pool in threadpool_info() if pool["user_api"] == "blas"]
    assert blas
    assert {pool["num_threads"] for pool in blas} == {1}


def test_a_drivers_scenes_are_where_it_drove():
    scenes = {
        driver: [driven_scene(seed, driver()) for seed in range(6)]
        for driver in (ConstantVelocityDriver, ExpertDriver)
    }
    for scene in chain(*scenes.values()):
        assert len(scene.moments) == 4
        assert collision(scene.now) is None
        times = np.diff([world.time for world in scene.moments])
        np.testing.assert_allclose(times, 0.5)
    gaps = [
        np.hypot(*(a.now.ego[:2] - b.now.ego[:2])) for a, b in zip(*scenes.values(), strict=True)
    ]
    assert max(gaps) > 0.5
    again = driven_scene(0, ConstantVelocityDriver())
    np.testing.assert_array_equal(again.now.ego, scenes[ConstantVelocityDriver][0].now.ego)
