"""A plan is scored by following it in the world as it is now."""

import numpy as np
import pytest

from autovla_rt.demo import state
from autovla_rt.demo.drivers import constant_velocity
from autovla_rt.demo.plan_score import PlanJudge
from autovla_rt.demo.scenes import NUM_POSES, record_scene

STANDING_STILL = np.zeros((NUM_POSES, 3))


def test_the_experts_plan_is_nearly_perfect(scenes):
    scores = [PlanJudge(scene.now).score(scene.trajectory) for scene in scenes]
    assert np.mean([score.score for score in scores]) > 0.98
    assert all(score.no_collision and score.on_road for score in scores)
    assert not any(score.red_light for score in scores)
    assert {score.seconds for score in scores} == {5.0}


def test_who_ignores_the_others_is_worse(complex_scenes):
    straight_on = [PlanJudge(s.now).score(constant_velocity(s.now)) for s in complex_scenes]
    assert np.mean([score.score for score in straight_on]) < 0.8
    assert any(score.collided_with is not None for score in straight_on)


def test_standing_still_makes_no_progress(scenes):
    moving = next(s for s in scenes if np.hypot(*s.trajectory[-1, :2]) > 20)
    score = PlanJudge(moving.now).score(STANDING_STILL)
    assert score.progress < 0.6
    assert score.score < PlanJudge(moving.now).score(moving.trajectory).score


def test_off_the_road_is_worth_nothing(scenes):
    moving = next(s for s in scenes if s.now.ego[state.SPEED] > 6)
    turn = np.linspace(0, 1.4, NUM_POSES)
    away = np.column_stack([np.arange(1, NUM_POSES + 1) * 2.5, 12 * turn**2, turn])
    score = PlanJudge(moving.now).score(away)
    assert not score.on_road
    assert score.score == 0.0


def test_a_light_that_is_red_now_stays_red():
    for seed in range(400):
        scene = record_scene(seed, "light")
        if scene.cause == state.CAUSE_LIGHT and scene.now.light == state.RED:
            break
    distance = scene.now.facts[state.STOP] - scene.now.ego[state.ALONG] - state.FRONT
    through = np.zeros((NUM_POSES, 3))
    through[:, 0] = np.linspace(0.1, 1, NUM_POSES) * (distance + 12)
    judge = PlanJudge(scene.now)
    assert judge.score(through).red_light
    assert not judge.score(scene.trajectory).red_light


def test_judging_changes_nothing(scenes):
    now = scenes[0].now
    before = now.ego.copy(), now.agents.copy(), now.facts.copy(), now.time
    judge = PlanJudge(now)
    first = judge.score(scenes[0].trajectory)
    judge.score(STANDING_STILL)
    assert judge.score(scenes[0].trajectory) == first
    for old, new in zip(before, (now.ego, now.agents, now.facts, now.time), strict=True):
        np.testing.assert_array_equal(old, new)


@pytest.mark.parametrize("seed", [0, 7])
def test_equal_worlds_give_equal_scores(seed):
    scores = [
        PlanJudge(record_scene(seed).now).score(constant_velocity(record_scene(seed).now))
        for _ in range(2)
    ]
    assert scores[0] == scores[1]
