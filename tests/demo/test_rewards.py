"""What an answer is worth, alone and beside the others to its scene."""

import dataclasses
import math

import numpy as np
import pytest

from autovla_rt.demo.rewards import RewardSettings, advantages
from autovla_rt.demo.score import Score

SCORE = Score(
    score=0.8,
    no_collision=True,
    on_road=True,
    progress=0.9,
    time_to_collision=0.9,
    comfort=1.0,
    metres=30.0,
    seconds=5.0,
    collided_with=None,
    red_light=False,
)
SETTINGS = RewardSettings(weight=0.2, centre=20.0, width=5.0)


def test_reasoning_costs_half_the_weight_at_the_centre():
    assert SETTINGS.reward(SCORE, 20) == pytest.approx(0.8 - 0.1)
    costs = [SETTINGS.penalty(tokens) for tokens in range(0, 100, 5)]
    assert costs == sorted(costs)
    assert costs[0] < 0.01
    assert 0.199 < costs[-1] < 0.2
    assert SETTINGS.penalty(25) == pytest.approx(0.2 / (1 + math.exp(-1)))


def test_a_red_light_that_was_crossed_leaves_only_the_cost():
    crossed = dataclasses.replace(SCORE, red_light=True)
    assert SETTINGS.reward(crossed, 20) == pytest.approx(-0.1)


def test_rewards_are_normalised_within_the_group():
    worth = advantages([0.0, 0.0, 1.0, 1.0], least_deviation=0.05)
    np.testing.assert_allclose(worth.values, [-1, -1, 1, 1])
    assert (worth.invalid, worth.constant) == (0, False)


def test_a_small_deviation_is_not_blown_up():
    worth = advantages([0.90, 0.91], least_deviation=0.05)
    np.testing.assert_allclose(worth.values, [-0.1, 0.1])


@pytest.mark.parametrize(
    "rewards", [[0.7] * 4, [0.7, 0.7 + 1e-9], [0.7], [math.nan, 0.7, math.inf]]
)
def test_a_constant_group_teaches_nothing(rewards):
    worth = advantages(rewards, least_deviation=0.05)
    assert worth.constant
    assert not worth.values.any()


def test_what_is_no_number_is_counted_and_left_out():
    worth = advantages([0.2, math.nan, 0.6, -math.inf], least_deviation=0.05)
    np.testing.assert_allclose(worth.values, [-1, 0, 1, 0])
    assert (worth.invalid, worth.constant) == (2, False)
