import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autovla_rt.demo import road
from autovla_rt.demo.road import LANE, NO_PLACE, STEP, build_layout, lane_offset

SEEDS = st.integers(0, 10_000)


def layout(seed, turn, lanes=1, junction=150.0):
    return build_layout(
        np.random.default_rng(seed), junction=junction, zebra=None, turn=turn, lanes=lanes
    )


@settings(max_examples=20, deadline=None)
@given(SEEDS, st.sampled_from([-1, 0, 1]), st.sampled_from([1, 2]))
def test_a_route_is_smooth_and_can_be_driven(seed, turn, lanes):
    route = layout(seed, turn, lanes).route
    steps = np.hypot(*np.diff(route[:, :2], axis=0).T)
    assert np.abs(steps - STEP).max() < 0.05
    assert np.abs(route[:, 3]).max() < 0.16  # 1/m: what a car can steer is 0.19
    assert np.abs(np.diff(route[:, 2])).max() < 0.1


@settings(max_examples=20, deadline=None)
@given(SEEDS, st.sampled_from([-1, 1]), st.sampled_from([1, 2]))
def test_a_turn_ends_in_the_right_lane_of_the_crossing_road(seed, turn, lanes):
    drawn = layout(seed, turn, lanes)
    x, y = drawn.route[-100, :2]
    index = int(np.argmin(np.hypot(*(drawn.cross[:, :2] - (x, y)).T)))
    along, left = road.project(drawn.cross, x, y, index)
    assert left == pytest.approx(-turn * LANE / 2, abs=0.1)
    assert (along - drawn.numbers[road.CROSS_CENTRE]) * turn > 50
    before = drawn.route[int((drawn.junction_on_route - 30) / STEP), 2]
    assert drawn.route[int((drawn.junction_on_route + 25) / STEP), 2] - before == pytest.approx(
        turn * np.pi / 2, abs=0.15
    )


@settings(max_examples=20, deadline=None)
@given(SEEDS, st.sampled_from([-1, 0, 1]))
def test_every_metre_of_a_route_is_on_the_road(seed, turn):
    drawn = layout(seed, turn)
    for x, y in drawn.route[20:-20:5, :2]:
        coordinates = []
        for line in (drawn.main, drawn.cross):
            index = int(np.argmin(np.hypot(*(line[:, :2] - (x, y)).T)))
            coordinates.append(road.project(line, x, y, index))
        (along, left), (_, cross_left) = coordinates
        assert road.on_road(along, left, cross_left, drawn.numbers, 0.0)


def test_the_stop_line_is_before_the_crossing_road():
    drawn = layout(3, 0)
    place = drawn.route[int(drawn.stop_on_route / STEP), :2]
    distance = np.hypot(*(drawn.cross[:, :2] - place).T).min()
    assert distance == pytest.approx(LANE + road.STOP_LINE, abs=2 * STEP)


def test_without_a_junction_no_road_crosses():
    drawn = layout(0, 1, junction=None)
    assert not drawn.has_junction
    assert drawn.turn == 0
    assert drawn.numbers[road.JUNCTION] == NO_PLACE
    assert not road.on_road(10.0, 30.0, 60.0, drawn.numbers, 0.0)


def test_the_kerb_is_round_at_a_corner():
    numbers = layout(0, 0).numbers
    centre, half = numbers[road.JUNCTION], numbers[road.MAIN_HALF]
    assert road.on_road(centre + LANE + 1.0, half + 1.0, -(LANE + 1.0), numbers, 0.0)
    assert not road.on_road(centre + LANE + 5.0, half + 5.0, -(LANE + 5.0), numbers, 0.0)


@settings(max_examples=10, deadline=None)
@given(SEEDS)
def test_a_chart_agrees_with_exact_projection(seed):
    drawn = layout(seed, 1)
    rng = np.random.default_rng(seed)
    x, y = drawn.route[200, :2]
    grid = road.chart(drawn.main, drawn.cross, x, y)
    corner = road.chart_origin(x), road.chart_origin(y)
    read = np.empty(4)
    for along, offset in zip(rng.uniform(60, 140, 30), rng.uniform(-10, 10, 30), strict=True):
        px, py, _ = road.place(drawn.main, along, offset)
        road.chart_at(grid, *corner, px, py, read)
        assert read[1] == pytest.approx(offset, abs=0.06)
        assert read[0] == pytest.approx(along, abs=0.3)


def test_place_and_project_are_inverse():
    drawn = layout(5, 0)
    for along, offset in ((33.3, -1.7), (80.1, 2.5), (200.0, 0.0)):
        x, y, _ = road.place(drawn.main, along, offset)
        index = int(np.argmin(np.hypot(*(drawn.main[:, :2] - (x, y)).T)))
        assert road.project(drawn.main, x, y, index) == pytest.approx((along, offset), abs=0.02)


def test_lanes_keep_right():
    assert lane_offset(0) == -LANE / 2
    assert lane_offset(1) == -3 * LANE / 2
