import numpy as np
import pytest
from PIL import Image

from autovla_rt.config import CAMERAS
from autovla_rt.demo import state, vision_targets
from autovla_rt.demo.camera import (
    AGENT_ID,
    AMBER_ID,
    ASPHALT_ID,
    CAMERA_AHEAD,
    CAMERA_HEIGHT,
    FIELD_OF_VIEW,
    GREEN_ID,
    HORIZON,
    PAINT_ID,
    RED_ID,
    SKY_ID,
)
from autovla_rt.demo.render import render, render_moments
from autovla_rt.demo.scenario import draw_world
from autovla_rt.demo.scenes import record_scene

SIZE = (392, 224)


def empty_world(seed=0):
    world = draw_world(seed, "free")
    world.agents = world.agents[:0]
    world.scenery = world.scenery[:0]
    return world


def with_agent(world, kind, ahead, left, size=(4.5, 1.9, 1.5), heading=0.0, **columns):
    """Put one agent `ahead` and `left` of the ego's camera."""
    agent = np.zeros(state.AGENT_COLUMNS)
    x, y, course = world.ego[:3]
    ahead += CAMERA_AHEAD
    agent[state.KIND] = kind
    agent[[state.LENGTH, state.WIDTH, state.HEIGHT]] = size
    agent[state.A_X] = x + np.cos(course) * ahead - np.sin(course) * left
    agent[state.A_Y] = y + np.sin(course) * ahead + np.cos(course) * left
    agent[state.A_HEADING] = course + heading
    for name, value in columns.items():
        agent[getattr(state, name)] = value
    world.agents = agent[None]
    return world


def test_a_box_is_seen_where_a_pinhole_camera_sees_it():
    world = with_agent(empty_world(), state.BARRIER, 20.0, 2.0, size=(0.3, 1.6, 1.3))
    view = render(world, *SIZE)["front"]
    rows, columns = np.nonzero(view.ids == AGENT_ID)
    focal = SIZE[0] / 2 / np.tan(FIELD_OF_VIEW / 2)
    near = 20.0 - 0.15
    assert columns.min() == pytest.approx(SIZE[0] / 2 - focal * 2.8 / near, abs=1.5)
    assert columns.max() == pytest.approx(SIZE[0] / 2 - focal * 1.2 / near, abs=1.5)
    top = SIZE[1] * HORIZON - focal * (1.3 - CAMERA_HEIGHT) / near
    assert rows.min() == pytest.approx(top, abs=1.5)
    assert view.depths[rows, columns].min() == pytest.approx(near, abs=0.02)


@pytest.mark.parametrize(("camera", "left"), [("front_left", 14.3), ("front_right", -14.3)])
def test_side_cameras_look_55_degrees_aside(camera, left):
    world = with_agent(empty_world(), state.CAR, 10.0, left)  # 55 degrees off
    views = render(world, *SIZE)
    columns = np.nonzero(views[camera].ids == AGENT_ID)[1]
    assert columns.mean() == pytest.approx(SIZE[0] / 2, abs=12)
    assert not (views["front"].ids == AGENT_ID).any()


def test_the_nearer_object_hides_the_farther_one():
    world = with_agent(empty_world(), state.CAR, 12.0, 0.0)
    behind = with_agent(empty_world(), state.TRUCK, 40.0, 0.0, size=(7, 2.3, 1.4)).agents
    for order in ((world.agents, behind), (behind, world.agents)):
        world_of_two = empty_world()
        world_of_two.agents = np.concatenate(order)
        ids = render(world_of_two, *SIZE)["front"].ids
        near = AGENT_ID + (0 if order[0] is world.agents else 1)
        alone = render(world, *SIZE)["front"].ids == AGENT_ID
        assert (ids[alone] == near).all()


def test_sky_is_above_the_horizon_and_road_ahead():
    view = render(empty_world(), *SIZE)["front"]
    horizon = round(SIZE[1] * HORIZON)
    assert (view.ids[: horizon - 1] == SKY_ID).all()
    assert np.isin(view.ids[-1, SIZE[0] // 2], (ASPHALT_ID, PAINT_ID))
    assert (view.ids == PAINT_ID).sum() > 100
    below = view.depths[horizon + 2 :, SIZE[0] // 2]
    assert (np.diff(below) < 0).all()


@pytest.mark.parametrize("colour", [state.GREEN, state.AMBER, state.RED])
def test_a_lit_lamp_has_the_lights_colour(colour):
    world = draw_world(4, "light")
    world.facts[state.LIGHT], world.facts[state.FROZEN_LIGHT] = 1.0, state.GREEN
    for _ in range(400):
        if world.facts[state.STOP] - world.ego[state.ALONG] < 15:
            break
        world.advance(1)
    world.facts[state.FROZEN_LIGHT] = colour
    view = render(world, *SIZE)["front"]
    wanted = {state.GREEN: GREEN_ID, state.AMBER: AMBER_ID, state.RED: RED_ID}[colour]
    assert (view.ids == wanted).sum() > 20
    assert not np.isin(view.ids, [i for i in (GREEN_ID, AMBER_ID, RED_ID) if i != wanted]).any()
    red, green, blue = view.pixels[view.ids == wanted].mean(axis=0)
    assert blue < 140
    assert (red > green + 80) == (colour == state.RED)
    assert (green > red + 60) == (colour == state.GREEN)


def test_brake_lamps_shine_red():
    def redness(acceleration):
        world = with_agent(
            empty_world(), state.CAR, 9.0, 0.0, RULE=state.TRAFFIC, A_SPEED=5.0,
            A_ACCELERATION=acceleration,
        )  # fmt: skip
        view = render(world, *SIZE)["front"]
        pixels = view.pixels[view.ids == AGENT_ID].astype(int)
        return ((pixels[:, 0] > 150) & (pixels[:, 1] < 80)).sum()

    assert redness(-3.0) > redness(0.5) + 40


def test_a_small_frame_looks_like_a_large_one_scaled_down():
    for seed in range(5):
        world = record_scene(seed).now
        small, large = render(world, 196, 112), render(world, *SIZE)
        for camera in CAMERAS:
            image = Image.fromarray(large[camera].pixels)
            scaled = np.asarray(image.resize((196, 112), Image.Resampling.BICUBIC), np.float64)
            assert np.abs(scaled - small[camera].pixels).mean() < 8
            assert abs((scaled - small[camera].pixels).mean()) < 1


def test_the_same_world_gives_the_same_bytes():
    for seed in (1, 2):
        a, b = (render(record_scene(seed).now, 196, 112) for _ in range(2))
        assert all(np.array_equal(a[c].pixels, b[c].pixels) for c in CAMERAS)


def test_moments_are_drawn_as_one_by_one():
    scene = record_scene(6)
    together = render_moments(scene.moments, 196, 112)
    alone = render(scene.now, 196, 112)
    for camera in CAMERAS:
        assert np.array_equal(together[-1][camera].pixels, alone[camera].pixels)
        assert not np.array_equal(together[0][camera].pixels, alone[camera].pixels)


def test_targets_say_what_the_pixels_show():
    world = with_agent(
        empty_world(), state.CAR, 14.0, 0.0, RULE=state.TRAFFIC, A_SPEED=7.0, A_ACCELERATION=-2.0
    )
    view = render(world, 196, 112)["front"]
    targets = np.zeros((28, vision_targets.WIDTH), np.float32)
    weights = np.zeros_like(targets)
    vision_targets.describe(view.ids, view.depths, world.agents, world.ego, targets, weights)
    assert ((targets >= 0) & (targets <= 1)).all()
    patches = targets.reshape(4, 7, 2, 2, -1).transpose(0, 2, 1, 3, 4).reshape(8, 14, -1)
    seen = (view.ids == AGENT_ID).reshape(8, 14, 14, 14).any(axis=(1, 3))
    assert np.array_equal(patches[..., vision_targets.VEHICLE] > 0, seen)
    known = weights.reshape(4, 7, 2, 2, -1).transpose(0, 2, 1, 3, 4).reshape(8, 14, -1)
    assert np.array_equal(known[..., vision_targets.NEARNESS] > 0, seen)
    rear = 14.0 - 2.25
    assert patches[..., vision_targets.NEARNESS].max() == pytest.approx(6 / (6 + rear), abs=0.01)
    assert patches[seen][:, vision_targets.SPEED] == pytest.approx(0.5)
    assert patches[seen][:, vision_targets.FACING] == pytest.approx(1.0)
    assert (patches[seen][:, vision_targets.BRAKING] == 1).all()
    assert (patches[:3, :, vision_targets.ROAD] == 0).all()
    assert patches[-1, 7, vision_targets.ROAD] == 1
