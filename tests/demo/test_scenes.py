import re
from collections import Counter

import numpy as np
import pytest

from autovla_rt.demo import scenes as scenes_module
from autovla_rt.demo import state
from autovla_rt.demo.narrator import critical_object, narrate, read_mention, spoken_metres
from autovla_rt.demo.scenario import draw_world
from autovla_rt.demo.scenes import COMPLEX_METRES, collision, expert_plan, record_scene


def test_equal_seeds_give_equal_scenes():
    a, b = record_scene(11), record_scene(11)
    assert np.array_equal(a.trajectory, b.trajectory)
    assert np.array_equal(a.now.agents, b.now.agents)
    assert not np.array_equal(a.trajectory, record_scene(12).trajectory)


def test_moments_are_half_a_second_apart(scenes):
    for scene in scenes:
        times = [moment.time for moment in scene.moments]
        assert np.diff(times) == pytest.approx(0.5)
        assert len(times) == 4


def test_a_plan_starts_where_the_car_is_and_at_its_speed(scenes):
    for scene in scenes:
        first = scene.trajectory[0]
        assert abs(np.hypot(*first[:2]) - 0.5 * scene.now.ego[state.SPEED]) < 1.2
        assert abs(first[1]) < 1.0


def test_a_plan_knows_nothing_of_what_is_to_come():
    """A car that waits at a red light plans to go on waiting, even if green comes in a second."""
    world = draw_world(4, "light")
    world.agents = world.agents[:0]
    world.facts[[state.LIGHT, state.FROZEN_LIGHT]] = 1.0, state.RED
    world.advance(300)
    world.facts[state.FROZEN_LIGHT] = state.NO_LIGHT
    cycle = world.facts[[state.GREEN_TIME, state.AMBER_TIME, state.RED_TIME]].sum()
    world.facts[state.PHASE] = cycle - 1.0 - world.time
    assert world.light == state.RED
    assert np.hypot(*expert_plan(world)[-1, :2]) < 0.5
    world.advance(50)
    assert world.light == state.GREEN
    assert world.ego[state.SPEED] > 2.0


def test_a_plan_expects_no_new_behaviour():
    """Who stands at the kerb now stays there in the plan, whoever would start to cross."""
    started = 0
    for seed in range(20):
        world = draw_world(seed, "pedestrian")
        world.advance(10)
        planned, real = scenes_module._future(world, interact=True)[2], world.copy()
        real.advance(50)
        assert np.array_equal(planned.agents[:, state.ACTIVE], world.agents[:, state.ACTIVE])
        started += (real.agents[:, state.ACTIVE] != world.agents[:, state.ACTIVE]).any()
    assert started > 3


def test_complex_is_what_changes_the_plan(scenes):
    for scene in scenes:
        shift = np.hypot(*(scene.trajectory - scene.undisturbed)[:, :2].T).max()
        assert scene.complex == (shift > COMPLEX_METRES)
    kinds = Counter(scene.complex for scene in scenes)
    assert min(kinds.values()) > 5


@pytest.mark.parametrize(
    ("event", "cause"),
    [
        ("pedestrian", "pedestrian"),
        ("light", "light"),
        ("construction", "roadworks"),
        ("stopped", "car"),
        ("lead", "car"),
        ("cut_in", "car"),
    ],
)
def test_an_event_is_mostly_what_a_complex_scene_is_about(event, cause):
    scenes = [record_scene(500 + i, event) for i in range(30)]
    named = Counter(critical_object(scene).kind for scene in scenes if scene.complex)
    named["car"] += named.pop("truck", 0)
    assert named.most_common(1)[0][0] == cause


def test_nothing_disturbs_most_free_scenes():
    scenes = [record_scene(900 + i, "free") for i in range(30)]
    assert sum(scene.complex for scene in scenes) < 15


def test_no_scene_begins_or_ends_in_a_collision(scenes):
    assert all(collision(scene.now) is None for scene in scenes)


def test_a_narration_has_four_headed_lines(scenes):
    for scene in scenes:
        lines = narrate(scene).split("\n")
        assert [line.split(":")[0] for line in lines] == ["Scene", "Object", "Intent", "Action"]
        assert all(re.fullmatch(r"[A-Z][a-z]+: [a-z0-9 ,/]+\.", line) for line in lines)


def test_a_narration_says_the_true_state(complex_scenes):
    for scene in complex_scenes:
        said, true = read_mention(narrate(scene)), critical_object(scene)
        assert said == true
        agents = len(scene.now.agents)
        if scene.cause < agents:
            agent = scene.now.agents[scene.cause]
            distance = np.hypot(
                agent[state.A_X] - scene.now.ego[0], agent[state.A_Y] - scene.now.ego[1]
            )
            assert said.metres <= distance + 3
        if "light red" in narrate(scene):
            assert scene.now.light == state.RED


def test_a_narration_of_a_straightforward_scene_names_no_object(scenes):
    for scene in scenes:
        if not scene.complex:
            assert "Object: none." in narrate(scene)
            assert read_mention(narrate(scene)) is None


def test_a_narration_says_which_way_the_plan_turns(scenes):
    turned = [s for s in scenes if abs(s.trajectory[-1, 2]) > 0.7 and s.final_speed > 0.5]
    assert turned
    for scene in turned:
        side = "left" if scene.trajectory[-1, 2] > 0 else "right"
        assert f"Action: turn {side}" in narrate(scene)


def test_a_reasoning_without_an_object_names_none():
    assert read_mention("I think we should go.") is None


@pytest.mark.parametrize(("metres", "said"), [(-2, 0), (3.4, 3), (7.2, 8), (19.2, 20), (43, 45)])
def test_distances_are_rounded_as_people_say_them(metres, said):
    assert spoken_metres(metres) == said


def test_an_unknown_event_is_refused():
    with pytest.raises(KeyError):
        record_scene(0, "earthquake")
