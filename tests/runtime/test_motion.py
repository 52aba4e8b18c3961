import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from autovla_rt.runtime.motion import carried_on, constant_motion

near = {"rtol": 0, "atol": 1e-9}


def test_constant_velocity_is_a_straight_line():
    poses = constant_motion(8.0, 0.0, 0.0, steps=10, dt=0.5)
    np.testing.assert_allclose(poses, [[4.0 * k, 0, 0] for k in range(1, 11)], **near)


def test_a_constant_turn_is_a_circle():
    poses = constant_motion(5.0, 0.0, 0.25, steps=10, dt=0.5)
    time = 0.5 * np.arange(1, 11)
    radius = 5.0 / 0.25
    circle = np.stack([radius * np.sin(0.25 * time), radius * (1 - np.cos(0.25 * time))], 1)
    np.testing.assert_allclose(poses[:, :2], circle, **near)
    np.testing.assert_allclose(poses[:, 2], 0.25 * time, **near)


def test_a_braking_car_stops_and_stays():
    poses = constant_motion(4.0, -2.0, 0.3, steps=10, dt=0.5)
    assert poses[3, 0] == pytest.approx(poses[9, 0])
    assert poses[9, 2] == pytest.approx(2.0 * 0.3)
    assert np.hypot(*np.diff(poses[:, :2], axis=0).T).sum() + np.hypot(*poses[0, :2]) < 4.0
    np.testing.assert_allclose(constant_motion(0.0, -1.0, 0.1, steps=3, dt=0.5), 0, **near)


def test_an_accelerating_car_covers_what_it_should():
    poses = constant_motion(3.0, 1.5, 0.0, steps=10, dt=0.5)
    assert poses[-1, 0] == pytest.approx(3.0 * 5 + 1.5 / 2 * 25)


@given(st.floats(0, 25), st.floats(-0.4, 0.4), st.floats(0, 7))
def test_a_plan_of_constant_turn_and_speed_looks_the_same_later(speed, turn, elapsed):
    plan = constant_motion(speed, 0.0, turn, steps=10, dt=0.5)
    later = carried_on(plan, 0.5, 0.5 * round(elapsed / 0.5))
    np.testing.assert_allclose(later, plan, rtol=0, atol=1e-6)
    # between two poses it is a chord of the arc
    np.testing.assert_allclose(carried_on(plan, 0.5, elapsed), plan, rtol=0, atol=0.8)


def test_a_straight_plan_is_cut_where_the_ego_is():
    plan = constant_motion(8.0, -1.0, 0.0, steps=10, dt=0.5)
    later = carried_on(plan, 0.5, 0.5)
    np.testing.assert_allclose(later[:9, 0], plan[1:, 0] - plan[0, 0], **near)
    assert later[9, 0] - later[8, 0] == pytest.approx(plan[9, 0] - plan[8, 0])


def test_a_heading_across_the_border_is_interpolated_the_short_way():
    plan = np.array([[0, 0, 3.0], [-1, 0, 3.1], [-2, 0, -3.1], [-3, 0, -3.1]])
    later = carried_on(plan, 0.5, 1.25)
    headings = 3.1 + np.array([0.0, 0.5]) * (2 * np.pi - 6.2)  # at 1.25 s and at 1.75 s
    assert later[0, 2] == pytest.approx(np.diff(headings)[0], abs=0.05)
