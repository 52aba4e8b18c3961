import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from autovla_rt.kernels.contour import compose
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


@given(st.floats(0, 25), st.floats(-0.4, 0.4), st.integers(0, 14), st.booleans())
def test_a_plan_of_constant_turn_and_speed_looks_the_same_later(speed, turn, ticks, on_plan):
    plan = constant_motion(speed, 0.0, turn, steps=10, dt=0.5)
    whole = constant_motion(speed, 0.0, turn, steps=24, dt=0.5)
    moved = whole[ticks - 1] if ticks else np.zeros(3)
    later = carried_on(plan, 0.5, 0.5 * ticks, moved if on_plan else None)
    np.testing.assert_allclose(later, plan, rtol=0, atol=1e-6)


def test_who_is_beside_the_plan_sees_it_beside():
    plan = constant_motion(8.0, 0.0, 0.0, steps=10, dt=0.5)
    later = carried_on(plan, 0.5, 0.25, [1.5, 0.4, 0.1])
    back = compose([1.5, 0.4, 0.1], later)
    np.testing.assert_allclose(back[:9, 0], 2.0 + plan[:9, 0], **near)
    np.testing.assert_allclose(back[:, 1], 0, **near)


def test_a_heading_across_the_border_is_interpolated_the_short_way():
    plan = np.array([[0, 0, 3.0], [-1, 0, 3.1], [-2, 0, -3.1], [-3, 0, -3.1]])
    later = carried_on(plan, 0.5, 1.25, [0, 0, 0])
    assert abs(later[0, 2]) > 3.1
