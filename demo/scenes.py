"""Scenes: four moments of a drive that the cameras saw, and what the expert does next."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from autovla_rt.config import FRAMES_PER_CAMERA
from autovla_rt.demo import expert, simulation, state
from autovla_rt.demo.road import Array
from autovla_rt.demo.scenario import draw_world
from autovla_rt.demo.state import EGO_LENGTH, EGO_WIDTH, HEADING, X, Y
from autovla_rt.demo.world import World
from autovla_rt.kernels.contour import compose, inverse

STEPS_PER_POSE = 5
"""Steps of the simulation between two frames, and between two poses of a plan (0.5 s)."""
NUM_POSES = 10
COMPLEX_METRES = 1.0
"""A scene is complex where agents, light and zones move the expert's plan by more than this."""

LONGEST_WARM_UP = 95
ATTEMPTS = 20


@dataclass(frozen=True)
class Scene:
    """One scene.

    Attributes:
        seed: What it was drawn from.
        moments: The world at the four frames, oldest first, 0.5 s apart; the last one is now.
        trajectory: [10, 3] the expert's plan in the ego frame (x forward, y left, heading; metres
            and radians), 0.5 s apart, if the world goes on as it does now: the light keeps its
            colour, agents begin nothing new.
        undisturbed: [10, 3] the same if it met nothing on its way.
        cause: What the expert minds most: an agent's index, CAUSE_LIGHT, CAUSE_ZONE or CAUSE_NONE.
        final_speed: Speed at the end of the plan, m/s.
    """

    seed: int
    moments: tuple[World, ...]
    trajectory: Array
    undisturbed: Array
    cause: int
    final_speed: float

    @property
    def now(self) -> World:
        """The world at the last frame."""
        return self.moments[-1]

    @property
    def complex(self) -> bool:
        """Whether something on the way changes what the ego must do."""
        return self.cause != state.CAUSE_NONE


def record_scene(seed: int, event: str | None = None) -> Scene:
    """Draw a world, let the expert drive with an unsteady hand, and stop at some moment.

    A drive that collides before or after that moment is drawn again (from the next seeds of a
    sequence that `seed` begins), so the expert's plan is always one to follow.
    """
    for attempt in range(ATTEMPTS):
        rng = np.random.default_rng([seed, attempt])
        world = draw_world(int(rng.integers(1 << 62)), event)
        moments = _drive(world, rng)
        scene = plan_scene(seed, moments)
        if scene is not None:
            return scene
    raise RuntimeError(f"No drive without a collision in {ATTEMPTS} attempts from seed {seed}.")


def plan_scene(seed: int, moments: tuple[World, ...]) -> Scene | None:
    """Add the expert's plan to four moments; None where that plan ends in a collision."""
    now = moments[-1]
    if collision(now) is not None:
        return None
    trajectory, losses, last = _future(now, interact=True)
    undisturbed, _, _ = _future(now, interact=False)
    if collision(last) is not None:
        return None
    shift = np.hypot(*(trajectory - undisturbed)[:, :2].T).max()
    cause = _main_cause(now, losses) if shift > COMPLEX_METRES else state.CAUSE_NONE
    return Scene(seed, moments, trajectory, undisturbed, cause, float(last.ego[state.SPEED]))


def expert_plan(now: World) -> Array:
    """Return the expert's trajectory [10, 3] in the ego frame, for the world as it is now."""
    return _future(now, interact=True)[0]


def collision(world: World) -> int | None:
    """Return the agent that the ego touches, None if there is none."""
    ego = world.ego
    for index, agent in enumerate(world.agents):
        if simulation.overlap(ego[X], ego[Y], ego[HEADING], EGO_LENGTH, EGO_WIDTH, agent):
            return index
    return None


def _drive(world: World, rng: np.random.Generator) -> tuple[World, ...]:
    history = (FRAMES_PER_CAMERA - 1) * STEPS_PER_POSE
    warm_up = int(rng.integers(LONGEST_WARM_UP))
    noise = unsteady_hand(rng, warm_up + history)
    world.advance(warm_up, noise=noise[:warm_up])
    moments = [world.copy()]
    for index in range(FRAMES_PER_CAMERA - 1):
        start = warm_up + index * STEPS_PER_POSE
        world.advance(STEPS_PER_POSE, noise=noise[start : start + STEPS_PER_POSE])
        moments.append(world.copy())
    return tuple(moments)


def unsteady_hand(rng: np.random.Generator, steps: int) -> Array:
    """Return slowly varying disturbances [steps, 2] of acceleration and curvature.

    They lead to states that the expert alone would not reach, and so teach how to come back from
    them (noise injection: Laskey et al., DART, 2017).
    """
    strength = float(rng.choice([0.0, 0.5, 1.0, 2.0]))
    noise = rng.normal(0, 1, (steps, 2)) * strength * (0.5, 0.006)
    for i in range(1, steps):
        noise[i] = 0.9 * noise[i - 1] + 0.44 * noise[i]
    return noise


def _future(now: World, *, interact: bool) -> tuple[Array, Array, World]:
    """Return the expert's trajectory [10, 3], what each cause took from it, and the last world."""
    world = now.copy()
    world.freeze_light()
    origin = inverse(now.ego[:3])
    poses, losses = [], np.zeros(len(world.agents) + 2)
    for _ in range(NUM_POSES):
        losses += world.advance(STEPS_PER_POSE, interact=interact, frozen=True)
        poses.append(compose(origin, world.ego[:3]))
    if interact:
        losses[-1] += 12.0 * _passing_shift(now, world)
    return np.array(poses), losses, world


def _passing_shift(now: World, last: World) -> float:
    """Return how far roadworks push the ego aside within the plan, m."""
    places = np.linspace(now.ego[state.ALONG], last.ego[state.ALONG], 12)
    shifts = [expert.target_left(now.zones, float(place)) for place in places]
    return float(np.ptp(shifts))


def _main_cause(now: World, losses: Array) -> int:
    strongest = int(np.argmax(losses))
    if losses[strongest] <= 0:
        return state.CAUSE_NONE
    agents = len(now.agents)
    return strongest if strongest < agents else state.CAUSE_LIGHT + strongest - agents
