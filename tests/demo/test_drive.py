import io

import numpy as np
import pytest
from PIL import Image

from autovla_rt.demo import expert, simulation, state
from autovla_rt.demo.drive import Drive, DriveSettings, draw_drive_world
from autovla_rt.demo.drivers import (
    ConstantVelocityDriver,
    Decision,
    ExpertDriver,
    WorldCameras,
    constant_velocity,
)
from autovla_rt.demo.filmstrip import contact_sheet, film, tick_picture
from autovla_rt.demo.scenario import draw_world
from autovla_rt.demo.score import Scorer, collision_at_fault, on_asphalt
from autovla_rt.demo.tracking import PlannedPath


def drive(seed, driver, **settings):
    run = Drive(draw_drive_world(seed), driver, DriveSettings(**{"latency_ms": 0.0, **settings}))
    return run, list(run)


def test_the_expert_drives_well_in_closed_loop():
    scores = [drive(seed, ExpertDriver())[0] for seed in range(8)]
    scores = [run.score() for run in scores]
    assert all(score.no_collision and score.on_road for score in scores)
    assert np.mean([score.score for score in scores]) > 0.9


def test_constant_velocity_drives_badly():
    runs = [drive(seed, ConstantVelocityDriver())[0].score() for seed in range(12)]
    assert np.mean([score.score for score in runs]) < 0.5
    assert not all(score.no_collision for score in runs)


def test_equal_seeds_drive_equally():
    (a, first), (b, second) = (drive(4, ExpertDriver()) for _ in range(2))
    assert a.score() == b.score()
    assert np.array_equal(first[-1].world.ego, second[-1].world.ego)


def test_plans_come_at_the_chosen_rate_with_four_moments_half_a_second_apart():
    seen = []

    class Watching(ExpertDriver):
        def decide(self, moments):
            seen.append([moment.time for moment in moments])
            return super().decide(moments)

    _, ticks = drive(1, Watching(), seconds=4.0, replan_every=0.2)
    assert [tick.time for tick in ticks] == pytest.approx(np.arange(0, 4, 0.2))
    for times in seen:
        assert np.diff(times) == pytest.approx([0.5, 0.5, 0.5])


class Braking:
    """Goes on, and from 2 s on plans to stand."""

    def __init__(self, milliseconds=0.0):
        self.milliseconds = milliseconds
        self.first = None

    def decide(self, moments):
        now = moments[-1]
        self.first = now.time if self.first is None else self.first
        stop = now.time - self.first >= 2.0 - 1e-6
        plan = np.zeros((10, 3)) if stop else constant_velocity(now)
        return Decision(plan, self.milliseconds)


def speed_after(seconds, latency_ms):
    """The speed at some time of the driver that plans to brake from 2 s on."""
    world = draw_world(2, "free")
    world.agents, world.ego[state.SPEED] = world.agents[:0], 8.0
    run = Drive(world, Braking(), DriveSettings(seconds=seconds, latency_ms=latency_ms))
    assert len(list(run)) == np.ceil(seconds / 0.5)
    return run._world.ego[state.SPEED]


def test_a_plan_that_took_400_ms_is_applied_400_ms_late():
    times = (2.0, 2.1, 2.2, 2.3, 2.4)
    prompt = [speed_after(t, 0.0) for t in times]
    late = [speed_after(t + 0.4, 400.0) for t in times]
    assert prompt[-1] < prompt[0] - 1.0
    assert np.subtract(late, late[0]) == pytest.approx(np.subtract(prompt, prompt[0]), abs=0.2)
    assert speed_after(2.4, 400.0) > prompt[-1] + 1.0


def test_one_plan_is_made_at_a_time():
    """A plan that takes 700 ms lets every second tick of 0.5 s pass."""
    _, ticks = drive(1, ExpertDriver(), seconds=4.0, latency_ms=700.0)
    assert [tick.time for tick in ticks] == pytest.approx([0.0, 1.0, 2.0, 3.0])


def test_without_a_fixed_latency_the_measured_one_counts():
    world = draw_world(2, "free")
    run = Drive(world, Braking(milliseconds=321.0), DriveSettings(seconds=1.0))
    assert {tick.latency_ms for tick in run} == {321.0}


def test_the_controller_follows_a_path_and_stops_at_its_end():
    world = draw_world(0, "free")
    world.ego[:] = 0, 0, 0, 6.0, 0, 0, 0
    distances = np.minimum(3.0 * np.arange(1, 11), 15.0)
    bend = distances / 30.0
    plan = np.column_stack([30 * np.sin(bend), 30 * (1 - np.cos(bend)), bend])
    path = PlannedPath(np.zeros(3), plan, 0.0)
    for step in range(60):
        simulation.move_ego(world.ego, world.layout.route, *path.control(world.ego, step * 0.1))
    assert world.ego[state.SPEED] < 0.3
    assert np.hypot(*(world.ego[:2] - plan[-1, :2])) < 1.5


def test_a_scorer_sees_collisions_roads_and_comfort():
    world = draw_world(3, "stopped")
    for _ in range(300):
        world.step(1.0, expert.steer(world.ego, world.layout.route, world.zones, True))
        if collision_at_fault(world) is not None:
            break
    assert collision_at_fault(world) in (state.CAR, state.TRUCK)
    scorer = Scorer(world)
    scorer.observe(world)
    score = scorer.result(10.0)
    assert (score.score, score.no_collision) == (0.0, False)
    assert score.collided_with in ("car", "truck")


def test_a_standing_car_that_is_touched_is_not_at_fault():
    world = draw_world(3, "stopped")
    world.agents[0, [state.A_X, state.A_Y]] = world.ego[:2]
    world.ego[state.SPEED] = 0.0
    assert collision_at_fault(world) is None
    world.ego[state.SPEED] = 3.0
    assert collision_at_fault(world) is not None


def test_who_leaves_the_road_scores_nothing():
    world = draw_world(0, "free")
    assert on_asphalt(world)
    scorer = Scorer(world)
    for _ in range(80):
        world.step(1.0, -0.1)
        scorer.observe(world)
    assert not on_asphalt(world)
    score = scorer.result(40.0)
    assert not score.on_road
    assert score.score == 0.0


def test_standing_is_full_progress_only_where_the_expert_stands():
    scorer = Scorer(draw_world(0, "free"))
    assert scorer.result(2.0).progress == 1.0
    assert scorer.result(50.0).progress == 0.0


def test_pictures_of_a_drive():
    _, ticks = drive(8, ExpertDriver(), seconds=3.0)
    pictures = [tick_picture(tick) for tick in ticks[::3]]
    sheet = contact_sheet(pictures, "a drive")
    assert sheet.width == pictures[0].width
    assert sheet.height > len(pictures) * pictures[0].height
    front = np.asarray(pictures[0])[:224, 392:784].astype(int)
    plan = (front[..., 2] - front[..., 0]) > 30
    assert plan[130:].any(axis=1).mean() > 0.5  # the plan lies on the road ahead
    with Image.open(io.BytesIO(film(pictures, 0.5))) as moving:
        assert moving.n_frames == len(pictures)


def test_a_camera_takes_each_frame_once():
    """Frames of the last request are reused, those of another world are not."""
    cameras = WorldCameras()
    a, b = draw_world(1).copy(), draw_world(2).copy()
    (first,) = cameras.look([a])
    assert first["front"].pixels.shape == (224, 392, 3)
    again, like_a, other = cameras.look([a, a.copy(), b])
    assert again is first
    assert like_a is not first
    np.testing.assert_array_equal(like_a["front"].pixels, first["front"].pixels)
    assert (other["front"].pixels != first["front"].pixels).any()
