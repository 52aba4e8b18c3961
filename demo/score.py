"""How well a drive went: a score after NAVSIM's PDM score, from the world's true state.

score = no_collision * on_road * (5 progress + 5 time_to_collision + 2 comfort) / 12

(Dauner et al., NAVSIM, NeurIPS 2024, section 4: multiplied penalties and a weighted mean with
these weights.) Here `time_to_collision` and `comfort` are shares of the drive's time.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np

from autovla_rt.demo import road, state, traffic
from autovla_rt.demo.jit import kernel
from autovla_rt.demo.road import Array
from autovla_rt.demo.simulation import overlap
from autovla_rt.demo.state import (
    A_HEADING,
    A_SPEED,
    A_X,
    A_Y,
    ACCELERATION,
    ALONG,
    CURVATURE,
    EGO_LENGTH,
    EGO_WIDTH,
    HEADING,
    SPEED,
    X,
    Y,
)
from autovla_rt.demo.world import World

STANDING = 0.2
LOOK_AHEAD = (0.3, 0.6, 0.9)
"""Moments at which ego and agents are carried on at constant velocity, s."""
NEAR = 40.0
"""Agents farther away than this, m, are not looked at."""
MARGIN = 0.3
"""How far a corner may be off the asphalt, m."""
ACCELERATIONS, LATERAL, JERK = (-4.05, 2.4), 4.89, 8.37
"""Comfort limits of NAVSIM, m/s² and m/s³."""
SHORT_WAY = 5.0
"""Below so much progress of the expert, m, standing is full progress."""


@dataclass(frozen=True)
class Score:
    """The score of one drive and what it is made of; see the module.

    `collided_with` is the kind of agent that was hit at fault, `red_light` whether the stop line
    was crossed at red (not part of the score).
    """

    score: float
    no_collision: bool
    on_road: bool
    progress: float
    time_to_collision: float
    comfort: float
    metres: float
    seconds: float
    collided_with: str | None
    red_light: bool

    def as_dict(self) -> dict[str, object]:
        """Plain values, ready for JSON."""
        return asdict(self)


class Scorer:
    """Watches a drive step by step; keeps a few numbers, however long it is."""

    def __init__(self, world: World) -> None:
        self._start = self._along = float(world.ego[ALONG])
        self._acceleration = float(world.ego[ACCELERATION])
        self._steps = self._safe = self._comfortable = 0
        self._on_road = True
        self._red_light = False
        self.collided_with: int | None = None

    def observe(self, world: World) -> None:
        """Take one step of 0.1 s into account."""
        self._steps += 1
        self._note_red_light(world)
        self._along = float(world.ego[ALONG])
        self._on_road &= on_asphalt(world)
        self._safe += not touches_soon(world.ego, world.agents)
        self._comfortable += self._is_comfortable(world.ego)
        if self.collided_with is None:
            self.collided_with = collision_at_fault(world)

    def result(self, expert_metres: float) -> Score:
        """Return the score; `expert_metres` is how far the expert came in the same time."""
        metres = self._along - self._start
        full = expert_metres < SHORT_WAY
        progress = 1.0 if full else float(np.clip(metres / expert_metres, 0, 1))
        steps = max(self._steps, 1)
        safe, comfort = self._safe / steps, self._comfortable / steps
        clean = self.collided_with is None
        mean = (5 * progress + 5 * safe + 2 * comfort) / 12
        kind = None if self.collided_with is None else KIND_NAMES[self.collided_with]
        return Score(
            score=float(clean and self._on_road) * mean,
            no_collision=clean,
            on_road=self._on_road,
            progress=progress,
            time_to_collision=safe,
            comfort=comfort,
            metres=metres,
            seconds=self._steps * state.DT,
            collided_with=kind,
            red_light=self._red_light,
        )

    def _is_comfortable(self, ego: Array) -> bool:
        jerk = (ego[ACCELERATION] - self._acceleration) / state.DT
        self._acceleration = float(ego[ACCELERATION])
        low, high = ACCELERATIONS
        lateral = ego[SPEED] ** 2 * abs(ego[CURVATURE])
        return bool(
            low <= ego[ACCELERATION] <= high and lateral <= LATERAL and abs(jerk) <= JERK + 1e-6
        )

    def _note_red_light(self, world: World) -> None:
        front, stop = self._along + state.FRONT, world.facts[state.STOP]
        crossed = front <= stop < world.ego[ALONG] + state.FRONT
        self._red_light |= bool(crossed and world.light == state.RED)


KIND_NAMES = {
    state.CAR: "car",
    state.TRUCK: "truck",
    state.PEDESTRIAN: "pedestrian",
    state.CONE: "cone",
    state.BARRIER: "barrier",
}


def collision_at_fault(world: World) -> int | None:
    """Return the kind of an agent that the moving ego touches with its front or side."""
    index = hit_at_fault(world.ego, world.agents)
    return None if index < 0 else int(world.agents[index, state.KIND])


def on_asphalt(world: World) -> bool:
    """Whether all four corners of the ego are on the road."""
    layout = world.layout
    return corners_on_road(world.ego, layout.main, layout.cross, layout.numbers)


@kernel
def hit_at_fault(ego: Array, agents: Array) -> int:
    """Return the index of such an agent, -1 if there is none."""
    if ego[SPEED] < STANDING:
        return -1
    cos, sin = np.cos(ego[HEADING]), np.sin(ego[HEADING])
    for i in range(len(agents)):
        agent = agents[i]
        if overlap(ego[X], ego[Y], ego[HEADING], EGO_LENGTH, EGO_WIDTH, agent):
            ahead = cos * (agent[A_X] - ego[X]) + sin * (agent[A_Y] - ego[Y])
            if ahead > -EGO_LENGTH / 2:
                return i
    return -1


@kernel
def corners_on_road(ego: Array, main: Array, cross: Array, numbers: Array) -> bool:
    """Whether all four corners of the ego are on asphalt, or within `MARGIN` m of it."""
    cos, sin = np.cos(ego[HEADING]), np.sin(ego[HEADING])
    for along in (EGO_LENGTH / 2, -EGO_LENGTH / 2):
        for left in (EGO_WIDTH / 2, -EGO_WIDTH / 2):
            x, y = ego[X] + cos * along - sin * left, ego[Y] + sin * along + cos * left
            place, across = road.project(main, x, y, traffic.find(main, x, y))
            _, cross_left = road.project(cross, x, y, traffic.find(cross, x, y))
            if not road.on_road(place, across, cross_left, numbers, MARGIN):
                return False
    return True


@kernel
def touches_soon(ego: Array, agents: Array) -> bool:
    """Whether the moving ego would touch somebody within a second if all kept their velocity."""
    if ego[SPEED] < STANDING:
        return False
    for i in range(len(agents)):
        if np.hypot(agents[i, A_X] - ego[X], agents[i, A_Y] - ego[Y]) >= NEAR:
            continue
        later = agents[i].copy()
        course = _course(later)
        vx, vy = later[A_SPEED] * np.cos(course), later[A_SPEED] * np.sin(course)
        for time in LOOK_AHEAD:
            later[A_X], later[A_Y] = agents[i, A_X] + time * vx, agents[i, A_Y] + time * vy
            x = ego[X] + time * ego[SPEED] * np.cos(ego[HEADING])
            y = ego[Y] + time * ego[SPEED] * np.sin(ego[HEADING])
            if overlap(x, y, ego[HEADING], EGO_LENGTH, EGO_WIDTH, later):
                return True
    return False


@kernel
def _course(agent: Array) -> float:
    """Return the direction of movement; who crosses a road moves square to its path."""
    heading = float(agent[A_HEADING])
    if agent[state.RULE] != state.CROSSER:
        return heading
    return heading + (np.pi / 2 if agent[state.P2] > agent[state.A_LEFT] else -np.pi / 2)
