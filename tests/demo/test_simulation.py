import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autovla_rt.demo import road, simulation, state, traffic
from autovla_rt.demo.events import EVENTS
from autovla_rt.demo.scenario import draw_world
from autovla_rt.demo.scenes import collision


def world_with(event, seed=0, **columns):
    world = draw_world(seed, event)
    for name, value in columns.items():
        world.facts[getattr(state, name.upper())] = value
    return world


@settings(deadline=None)  # the first example compiles the kernel
@given(st.floats(0, 20), st.floats(1, 20))
def test_idm_speeds_up_below_the_desired_speed_and_slows_down_above(speed, desired):
    acceleration = traffic.idm(speed, desired, traffic.CLEAR, 0.0)
    assert (acceleration > 0) == (speed < desired) or acceleration == pytest.approx(0, abs=1e-9)
    assert -traffic.COMFORT_BRAKING <= acceleration <= traffic.MAX_ACCELERATION


@settings(deadline=None)
@given(st.floats(3, 15), st.floats(0.5, 60))
def test_idm_brakes_harder_for_a_nearer_obstacle(speed, gap):
    near, far = (traffic.idm(speed, 15.0, g, speed) for g in (gap, gap + 5))
    assert near <= far
    assert near >= -traffic.HARDEST_BRAKING


def test_a_light_runs_through_its_colours():
    world = world_with("light", light=1, green_time=8, amber_time=3, red_time=9, phase=0)
    colours = [traffic.light_at(world.facts, t) for t in (0.0, 7.9, 8.1, 10.9, 11.1, 19.9, 20.1)]
    assert colours == [state.GREEN] * 2 + [state.AMBER] * 2 + [state.RED] * 2 + [state.GREEN]


def test_the_crossing_road_is_green_only_while_the_main_road_is_red():
    world = world_with("light", light=1)
    for time in np.arange(0, 60, 0.1):
        if traffic.cross_light_at(world.facts, time) == state.GREEN:
            assert traffic.light_at(world.facts, time) == state.RED


def test_a_frozen_light_keeps_its_colour():
    world = world_with("light", light=1, green_time=8, amber_time=3, red_time=9, phase=9)
    world.freeze_light()
    assert {traffic.light_at(world.facts, t) for t in np.arange(0, 40)} == {state.AMBER}


@pytest.mark.parametrize("seed", range(12))
def test_the_expert_stops_before_a_red_light(seed):
    world = world_with("light", seed, light=1)
    world.facts[state.FROZEN_LIGHT] = state.RED
    world.advance(400)
    front = world.ego[state.ALONG] + state.FRONT
    assert world.ego[state.SPEED] < 0.3
    assert front < world.facts[state.STOP] + 0.3


@pytest.mark.parametrize("event", EVENTS)
def test_the_expert_hits_nothing(event):
    for seed in range(25):
        world = draw_world(1000 + seed, event)
        for _ in range(30):
            world.advance(5)
            assert collision(world) is None, seed


def test_the_expert_leaves_the_lane_for_roadworks_and_comes_back():
    world = draw_world(3, "construction")
    start, end, shift = world.zones[0]
    offsets = []
    for _ in range(400):
        world.advance(1)
        index = traffic.find(world.layout.route, world.ego[0], world.ego[1])
        along, left = road.project(world.layout.route, world.ego[0], world.ego[1], index)
        offsets.append((along, left))
    inside = [left for along, left in offsets if start + 2 < along < end - 2]
    after = [left for along, left in offsets if along > end + 45]
    assert inside
    assert np.abs(np.array(inside) - shift).max() < 0.5
    assert not after or abs(after[-1]) < 0.3


def test_a_frozen_world_begins_nothing_new():
    for seed in range(20):
        world = draw_world(seed, "pedestrian")
        before = world.agents[world.agents[:, state.RULE] == state.CROSSER][:, state.ACTIVE].copy()
        world.advance(60, frozen=True)
        after = world.agents[world.agents[:, state.RULE] == state.CROSSER][:, state.ACTIVE]
        assert np.array_equal(before, after)


def test_equal_worlds_move_equally_and_a_copy_moves_alone():
    a, b = draw_world(5), draw_world(5)
    untouched = a.copy()
    a.advance(80)
    b.advance(80)
    assert np.array_equal(a.ego, b.ego)
    assert np.array_equal(a.agents, b.agents)
    assert untouched.time == 0.0
    assert not np.array_equal(untouched.ego, a.ego)


def test_the_bicycle_turns_as_its_curvature_says():
    world = draw_world(0, "free")
    ego = world.ego
    ego[:] = 0, 0, 0, 5.0, 0, 0.05, 0
    for _ in range(100):
        simulation.move_ego(ego, world.layout.route, 0.0, 0.05)
    assert ego[state.SPEED] == 5.0
    assert ego[state.HEADING] == pytest.approx(5.0 * 10 * 0.05)


def test_the_car_cannot_reverse_or_jump():
    world = draw_world(0, "free")
    world.ego[state.SPEED] = 3.0
    speeds, accelerations = [], []
    for _ in range(30):
        simulation.move_ego(world.ego, world.layout.route, -50.0, 9.0)
        speeds.append(world.ego[state.SPEED])
        accelerations.append(world.ego[state.ACCELERATION])
        assert world.ego[state.CURVATURE] <= 0.19
    assert min(speeds) == 0.0
    assert min(accelerations) >= -traffic.HARDEST_BRAKING
    assert accelerations[0] == pytest.approx(-1.6)  # 16 m/s³ for 0.1 s


def box(x, y, heading, length=4.0, width=2.0):
    agent = np.zeros(state.AGENT_COLUMNS)
    agent[[state.A_X, state.A_Y, state.A_HEADING, state.LENGTH, state.WIDTH]] = (
        x,
        y,
        heading,
        length,
        width,
    )
    return agent


@pytest.mark.parametrize(
    ("agent", "touches"),
    [
        (box(4.2, 0, 0), True),
        (box(4.6, 0, 0), False),
        (box(0, 1.9, 0), True),
        (box(0, 2.1, 0), False),
        (box(3.3, 0, np.pi / 2), True),
        (box(3.5, 0, np.pi / 2), False),
        (box(3.2, 2.2, np.pi / 4), True),
        (box(3.9, 2.9, np.pi / 4), False),
    ],
)
def test_boxes_overlap(agent, touches):
    assert simulation.overlap(0.0, 0.0, 0.0, 4.8, 2.0, agent) is touches
