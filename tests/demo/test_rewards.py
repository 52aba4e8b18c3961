"""What an answer is worth, alone and beside the others to its scene."""

import dataclasses
import math

import numpy as np
import pytest

from autovla_rt.demo.rewards import RewardSettings, advantages, nearness
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
SETTINGS = RewardSettings(imitation=0.25, weight=0.2, centre=20.0, width=5.0)


def test_reasoning_costs_half_the_weight_at_the_centre():
    driving = 0.75 * 0.8 + 0.25 * 0.4
    assert SETTINGS.reward(SCORE, 0.4, 20) == pytest.approx(driving - 0.1)
    costs = [SETTINGS.penalty(tokens) for tokens in range(0, 100, 5)]
    assert costs == sorted(costs)
    assert costs[0] < 0.01
    assert 0.199 < costs[-1] < 0.2
    assert SETTINGS.penalty(25) == pytest.approx(0.2 / (1 + math.exp(-1)))


def test_a_red_light_that_was_crossed_takes_the_whole_score():
    crossed = dataclasses.replace(SCORE, red_light=True)
    assert SETTINGS.reward(crossed, 0.4, 20) == pytest.approx(0.25 * 0.4 - 0.1)


def driven(acceleration, left=0.0):
    """Ten poses of a car that starts at 8 m/s and accelerates, `left` m to the left."""
    time = np.arange(1, 11) / 2
    ahead = 8 * time + acceleration / 2 * time**2
    return np.stack([ahead, np.full(10, left), np.zeros(10)], -1)


def test_nearness_is_one_for_the_expert_and_falls_with_distance():
    expert = driven(-1.0)
    assert nearness(expert, expert) == 1.0
    values = [nearness(driven(-1.0 + change), expert) for change in (0.05, 0.1, 0.3, 1.0, 3.0)]
    assert values == sorted(values, reverse=True)
    assert values[0] > 0.8
    assert values[-1] < 0.05
    assert nearness(driven(-0.7), expert) == pytest.approx(nearness(driven(-1.3), expert))


def test_the_same_distance_weighs_more_at_the_beginning():
    expert = driven(0.0)
    early, late = expert.copy(), expert.copy()
    early[0, 1] += 0.5
    late[-1, 1] += 0.5
    assert nearness(early, expert) < nearness(late, expert) - 0.04


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
