"""Seeded worlds: a road network, an event on the way that matters, and traffic that does not."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from autovla_rt.demo import road, simulation
from autovla_rt.demo.road import LANE, Array, Layout, build_layout
from autovla_rt.demo.simulation import (
    A_ALONG,
    A_LEFT,
    A_SPEED,
    ACTIVE,
    AGENT_COLUMNS,
    ALONG,
    BARRIER,
    BRAKER,
    CAR,
    COLOUR,
    CONE,
    CROSS_PATH,
    CROSSER,
    CUT_IN,
    DIRECTION,
    EGO_COLUMNS,
    HEIGHT,
    KIND,
    LENGTH,
    MAIN_PATH,
    NUM_FACTS,
    P0,
    PATH,
    PEDESTRIAN,
    ROUTE_PATH,
    RULE,
    SPEED,
    STATIC,
    STROLLER,
    TRAFFIC,
    TRUCK,
    WIDTH,
)

EVENTS = ("free", "lead", "cut_in", "pedestrian", "light", "construction", "stopped")
EVENT_SHARES = (0.22, 0.17, 0.12, 0.14, 0.15, 0.12, 0.08)

SIZES = {
    CAR: (4.5, 1.85, 1.5),
    TRUCK: (7.5, 2.3, 3.0),
    PEDESTRIAN: (0.5, 0.55, 1.75),
    CONE: (0.45, 0.45, 0.85),
    BARRIER: (0.3, 1.6, 1.3),
}
"""Kind -> length, width, height in metres."""

NUM_COLOURS = 8
ROUTE_START = 20.0
"""The ego never starts nearer to the beginning of the main road than this, m."""


@dataclass
class World:
    """A world at one moment. `copy` before anything that moves it, to come back.

    Attributes:
        layout: Roads and route.
        facts: [NUM_FACTS], see simulation.py.
        zones: [z, 3] construction zones.
        agents: [a, AGENT_COLUMNS].
        ego: [EGO_COLUMNS].
        time: Seconds.
        look: Seed of what a world looks like (light, colours, buildings).
        scenery: [s, 8] houses and trees (x, y, heading, length, width, height, kind, colour).
    """

    layout: Layout
    facts: Array
    zones: Array
    agents: Array
    ego: Array
    time: float
    look: int
    scenery: Array

    def copy(self) -> World:
        """Return a world of its own that can move on by itself."""
        return World(
            self.layout,
            self.facts.copy(),
            self.zones,
            self.agents.copy(),
            self.ego.copy(),
            self.time,
            self.look,
            self.scenery,
        )

    def advance(
        self,
        steps: int,
        *,
        noise: Array | None = None,
        interact: bool = True,
        frozen: bool = False,
    ) -> Array:
        """Let the expert drive `steps` of 0.1 s; returns what each cause took from its speed.

        `noise` [steps, 2] disturbs acceleration and curvature. Without `interact` it sees nothing
        but the road. A frozen world starts no new behaviour and its light stays.
        """
        losses = np.zeros(len(self.agents) + 2)
        layout = self.layout
        self.time = simulation.advance(
            self.ego,
            self.agents,
            self.zones,
            self.facts,
            layout.route,
            layout.main,
            layout.cross,
            self.time,
            np.zeros((steps, 2)) if noise is None else noise,
            interact,
            frozen,
            losses,
        )
        return losses

    def step(self, acceleration: float, curvature: float) -> None:
        """Move everything by 0.1 s, the ego by a controller's command (m/s², 1/m)."""
        layout = self.layout
        simulation.move_ego(self.ego, layout.route, acceleration, curvature)
        simulation.move_agents(
            self.ego,
            self.agents,
            self.facts,
            layout.route,
            layout.main,
            layout.cross,
            self.time,
            False,
        )
        self.time += simulation.DT

    def freeze_light(self) -> None:
        """Let the light keep its present colour."""
        self.facts[simulation.FROZEN_LIGHT] = simulation.light_at(self.facts, self.time)

    @property
    def light(self) -> int:
        """Colour of the ego's light: NO_LIGHT, GREEN, AMBER or RED."""
        return simulation.light_at(self.facts, self.time)

    @property
    def instruction(self) -> str:
        """What navigation says: the next junction's manoeuvre, from 60 m before to its end."""
        ahead = self.layout.junction_on_route - self.ego[ALONG]
        if self.layout.turn == 0 or not -25.0 < ahead < 60.0:
            return "keep forward"
        return "turn left" if self.layout.turn > 0 else "turn right"

    @property
    def acceleration(self) -> float:
        """Norm of the ego's acceleration in the plane, m/s²."""
        lateral = self.ego[SPEED] ** 2 * self.ego[simulation.CURVATURE]
        return float(np.hypot(self.ego[simulation.ACCELERATION], lateral))


@dataclass
class _Draft:
    """What a scenario is drawn into."""

    rng: np.random.Generator
    layout: Layout
    limit: float
    start: float = 0.0
    agents: list[Array] = field(default_factory=list)
    zones: list[tuple[float, float, float]] = field(default_factory=list)
    busy: list[tuple[float, float]] = field(default_factory=list)
    """Stretches of the route that background traffic stays out of."""

    def add(self, kind: int, path: int, along: float, left: float, **columns: float) -> Array:
        agent = np.zeros(AGENT_COLUMNS)
        length, width, height = SIZES[kind]
        size = self.rng.uniform(0.93, 1.07)
        agent[[KIND, PATH, DIRECTION, A_ALONG, A_LEFT]] = kind, path, 1, along, left
        agent[[LENGTH, WIDTH, HEIGHT]] = length * size, width, height * size
        agent[COLOUR] = self.rng.integers(NUM_COLOURS)
        for name, value in columns.items():
            agent[_COLUMNS[name]] = value
        self.agents.append(agent)
        return agent


_COLUMNS = {
    "direction": DIRECTION,
    "speed": A_SPEED,
    "rule": RULE,
    "p0": P0,
    "p1": P0 + 1,
    "p2": P0 + 2,
    "p3": P0 + 3,
    "active": ACTIVE,
}


def draw_world(
    seed: int, event: str | None = None, *, events: int = 1, spacing: float = 85.0
) -> World:
    """Draw a world whose ego is about to meet an event, or several in a row.

    Args:
        seed: Equal seeds give equal worlds.
        event: One of `EVENTS` for the first; None draws it.
        events: How many follow each other along the route.
        spacing: Metres between them.
    """
    rng = np.random.default_rng(seed)
    kinds = [str(rng.choice(EVENTS, p=EVENT_SHARES)) for _ in range(events)]
    if event is not None:
        kinds[0] = event
    places = [ROUTE_START + 95.0 + i * spacing + float(rng.uniform(-8, 8)) for i in range(events)]
    junction, turn = _choose_junction(rng, kinds, places)
    lanes = 2 if "cut_in" in kinds or rng.random() < 0.5 else 1
    zebra = next((s for k, s in zip(kinds, places, strict=True) if k == "pedestrian"), None)
    layout = build_layout(
        rng,
        junction=junction,
        zebra=zebra if rng.random() < 0.75 else None,
        turn=turn,
        lanes=lanes,
    )
    draft = _Draft(rng, layout, float(rng.uniform(8, 14)))
    draft.start = places[0] - float(rng.uniform(30, 90))
    for kind, place in zip(kinds, places, strict=True):
        _EVENT_DRAWERS[kind](draft, place)
    _background(draft)
    return _assemble(draft, lit="light" in kinds)


def _choose_junction(
    rng: np.random.Generator, kinds: list[str], places: list[float]
) -> tuple[float | None, int]:
    """Return where a junction lies and which way the route goes there."""
    lit = next((s for k, s in zip(kinds, places, strict=True) if k == "light"), None)
    turn = int(rng.choice([-1, 0, 1], p=[0.36, 0.28, 0.36]))
    if lit is not None:
        return lit + 12.0, turn
    if rng.random() < 0.55:
        behind = places[-1] if kinds[-1] == "free" else places[-1] + float(rng.uniform(45, 80))
        return behind, turn
    return None, 0


def _assemble(draft: _Draft, lit: bool) -> World:
    rng, layout = draft.rng, draft.layout
    facts = np.zeros(NUM_FACTS)
    facts[: len(layout.numbers)] = layout.numbers
    facts[simulation.ENTRY], facts[simulation.STOP] = layout.junction_on_route, layout.stop_on_route
    facts[simulation.TURN], facts[simulation.LIMIT] = layout.turn, draft.limit
    facts[simulation.LIGHT] = float(layout.has_junction and (lit or rng.random() < 0.5))
    green, red = float(rng.uniform(7, 14)), float(rng.uniform(9, 16))
    facts[[simulation.GREEN_TIME, simulation.AMBER_TIME, simulation.RED_TIME]] = green, 3.0, red
    # Where the light is the event, the ego mostly arrives at amber or red.
    arrival = (layout.stop_on_route - draft.start) / draft.limit if layout.has_junction else 0.0
    share = float(rng.uniform(-4, red + 3) if lit else rng.uniform(0, green + 3.0 + red))
    facts[simulation.PHASE] = (green + share - arrival) % (green + 3.0 + red)
    facts[simulation.FROZEN_LIGHT] = simulation.NO_LIGHT
    ego = _ego(draft)
    agents = np.array(draft.agents).reshape(-1, AGENT_COLUMNS)
    zones = np.array(draft.zones).reshape(-1, 3)
    simulation.locate_all(agents, layout.route, layout.main, layout.cross)
    look = int(rng.integers(1 << 31))
    return World(layout, facts, zones, agents, ego, 0.0, look, _scenery(layout, look))


def _ego(draft: _Draft) -> Array:
    rng, route = draft.rng, draft.layout.route
    ego = np.zeros(EGO_COLUMNS)
    pose = np.array(road.place(route, draft.start, float(rng.normal(0, 0.3))))
    pose[2] += rng.normal(0, 0.02)
    ego[:3], ego[ALONG] = pose, draft.start
    allowed = float(simulation.bend_speed(route, draft.start, draft.limit))
    ego[SPEED] = 0.0 if rng.random() < 0.1 else allowed * rng.uniform(0.5, 1.0)
    return ego


def _free(draft: _Draft, place: float) -> None:
    """Draw nothing: the way is clear."""


def _lead(draft: _Draft, place: float) -> None:
    rng = draft.rng
    cruise = draft.limit * float(rng.uniform(0.45, 0.9))
    draft.add(
        TRUCK if rng.random() < 0.25 else CAR,
        ROUTE_PATH,
        max(draft.start + float(rng.uniform(14, 40)), place - 60),
        float(rng.normal(0, 0.1)),
        speed=cruise,
        rule=BRAKER,
        p0=cruise,
        p1=float(rng.uniform(10, 26)),
        p2=float(rng.choice([0.0, 0.0, 2.0, 4.0])),
        p3=float(rng.uniform(3, 8)),
    )
    draft.busy.append((draft.start, place + 60))


def _stopped(draft: _Draft, place: float) -> None:
    rng = draft.rng
    wait, along = float(rng.uniform(8, 20)), place
    for _ in range(int(rng.integers(1, 5))):
        kind = TRUCK if rng.random() < 0.25 else CAR
        draft.add(
            kind,
            ROUTE_PATH,
            along,
            float(rng.normal(0, 0.12)),
            rule=BRAKER,
            p0=draft.limit * 0.8,
            p2=0.0,
            p3=wait,
            active=1e-3,
        )
        along += SIZES[kind][0] + 3.5 + float(rng.uniform(0, 2))
    draft.busy.append((place - 20, along + 20))


def _cut_in(draft: _Draft, place: float) -> None:
    rng = draft.rng
    side = LANE if draft.layout.lane == 1 else -LANE
    cruise = draft.limit * float(rng.uniform(0.4, 0.75))
    draft.add(
        TRUCK if rng.random() < 0.2 else CAR,
        ROUTE_PATH,
        max(draft.start + float(rng.uniform(8, 30)), place - 65),
        side,
        speed=cruise,
        rule=CUT_IN,
        p0=cruise,
        p1=float(rng.uniform(12, 26)),
        p2=0.0,
        p3=4.0,
    )
    draft.busy.append((draft.start, place + 60))


def _pedestrian(draft: _Draft, place: float) -> None:
    rng = draft.rng
    half = draft.layout.numbers[road.MAIN_HALF]
    for _ in range(1 if rng.random() < 0.7 else 2):
        side = float(rng.choice([-1, 1]))
        edge = half + float(rng.uniform(0.5, 1.6))
        draft.add(
            PEDESTRIAN,
            MAIN_PATH,
            place + float(rng.uniform(-1.2, 1.2)),
            side * edge,
            rule=CROSSER,
            p0=float(rng.uniform(1.0, 1.9)),
            p1=draft.limit * float(rng.uniform(2.0, 4.5)),
            p2=-side * edge,
        )
    draft.busy.append((place - 15, place + 15))


def _light(draft: _Draft, place: float) -> None:
    """Draw a queue before the light now and then; the light itself belongs to the junction."""
    rng, along = draft.rng, draft.layout.stop_on_route - 3.5
    if rng.random() < 0.35:
        for _ in range(int(rng.integers(1, 3))):
            draft.add(CAR, ROUTE_PATH, along, 0.0, rule=TRAFFIC, p0=draft.limit * 0.8)
            along -= 8.0
    draft.busy.append((place - 45, place + 25))


def _construction(draft: _Draft, place: float) -> None:
    """Draw cones that close a part of the lane, and a barrier at their head."""
    rng, layout = draft.rng, draft.layout
    narrow = layout.numbers[road.MAIN_LANES] == 1
    shift = 0.95 if narrow else LANE if layout.lane == 1 else -LANE
    side, length = float(np.sign(shift)), float(rng.uniform(14, 32))
    draft.zones.append((place, place + length, shift))
    edge = side * (abs(shift) - 1.75)
    for i in range(4):
        left = side * -2.0 + (edge + side * 2.0) * i / 4
        draft.add(CONE, ROUTE_PATH, place - 10.0 + 2.5 * i, left, rule=STATIC)
    for along in np.arange(place, place + length, 3.0):
        draft.add(CONE, ROUTE_PATH, float(along), edge, rule=STATIC)
    draft.add(BARRIER, ROUTE_PATH, place + 3.0, edge - side * 1.3, rule=STATIC)
    draft.busy.append((place - 35, place + length + 30))


_EVENT_DRAWERS = {
    "free": _free,
    "lead": _lead,
    "cut_in": _cut_in,
    "pedestrian": _pedestrian,
    "light": _light,
    "construction": _construction,
    "stopped": _stopped,
}


def _background(draft: _Draft) -> None:
    """Draw oncoming and crossing traffic, neighbours, parked cars and people on the pavement."""
    rng, layout = draft.rng, draft.layout
    half, lanes = layout.numbers[road.MAIN_HALF], int(layout.numbers[road.MAIN_LANES])
    for _ in range(int(rng.integers(0, 5))):
        lane, speed = int(rng.integers(lanes)), draft.limit * float(rng.uniform(0.6, 1))
        along = draft.start + float(rng.uniform(30, 260))
        draft.add(
            CAR if rng.random() < 0.8 else TRUCK,
            MAIN_PATH,
            along,
            -road.lane_offset(lane),
            direction=-1,
            speed=speed,
            rule=TRAFFIC,
            p0=speed,
        )
    # Who has to leave the lane at roadworks needs the other one.
    if lanes == 2 and not draft.zones and rng.random() < 0.6:
        speed = draft.limit * float(rng.uniform(0.6, 1))
        along = draft.start + float(rng.uniform(-15, 60))
        if not any(low <= along <= high for low, high in draft.busy):
            left = road.lane_offset(1 - layout.lane)
            draft.add(CAR, MAIN_PATH, along, left, speed=speed, rule=TRAFFIC, p0=speed)
    if layout.has_junction:
        for _ in range(int(rng.integers(0, 4))):
            _crossing_car(draft)
    for _ in range(int(rng.integers(0, 5))):
        side = float(rng.choice([-1, 1]))
        along = draft.start + float(rng.uniform(0, 160))
        if _clear_of_junction(draft, along):
            left = side * (half + 1.25)
            draft.add(CAR, MAIN_PATH, along, left, direction=-side, rule=STATIC)
    for _ in range(int(rng.integers(0, 6))):
        side, direction = float(rng.choice([-1, 1])), float(rng.choice([-1, 1]))
        along = draft.start + float(rng.uniform(0, 140))
        if _clear_of_junction(draft, along):
            left = side * (half + float(rng.uniform(2.4, 3.4)))
            pace = 0.0 if rng.random() < 0.4 else float(rng.uniform(0.8, 1.6))
            draft.add(
                PEDESTRIAN, MAIN_PATH, along, left, direction=direction, rule=STROLLER, p0=pace
            )


def _crossing_car(draft: _Draft) -> None:
    """Add a car on the crossing road; it comes only where a light will hold it."""
    rng, numbers = draft.rng, draft.layout.numbers
    direction = float(rng.choice([-1, 1]))
    line = numbers[road.MAIN_HALF] + road.STOP_LINE + 3.0
    along = numbers[road.CROSS_CENTRE] - direction * (line + float(rng.choice([0, 8, 25, 40])))
    draft.add(
        CAR,
        CROSS_PATH,
        along,
        direction * road.lane_offset(0),
        direction=direction,
        rule=TRAFFIC,
        p0=draft.limit * 0.8,
    )


def _clear_of_junction(draft: _Draft, along: float) -> bool:
    return bool(abs(along - draft.layout.numbers[road.JUNCTION]) > 22.0)


HOUSE, TREE = 0, 1


def _scenery(layout: Layout, look: int) -> Array:
    """Return houses and trees along the roads, clear of asphalt and pavement."""
    rng = np.random.default_rng(look)
    rows = []
    lines = [layout.main, layout.cross] if layout.has_junction else [layout.main]
    for line, half in zip(lines, layout.numbers[:2], strict=False):
        for along in np.arange(10.0, len(line) * road.STEP - 10, 13.0):
            for side in (-1.0, 1.0):
                if rng.random() < 0.35:
                    continue
                tree = rng.random() < 0.45
                depth = float(rng.uniform(5.5, 9.0)) if tree else float(rng.uniform(12, 20))
                x, y, heading = road.place(
                    line, along + float(rng.uniform(-3, 3)), side * (half + depth)
                )
                size = (3.0, 3.0, 5.0) if tree else (rng.uniform(8, 12), 9.0, rng.uniform(5, 13))
                rows.append((x, y, heading, *size, TREE if tree else HOUSE, rng.random()))
    scenery = np.array(rows)
    clear = np.ones(len(scenery), dtype=bool)
    for line, half in zip(lines, layout.numbers[:2], strict=False):
        samples = line[::4, :2]
        distance = np.hypot(*(scenery[:, None, :2] - samples[None]).transpose(2, 0, 1)).min(axis=1)
        clear &= distance > half + np.where(scenery[:, 6] == TREE, 5.0, 10.0)
    kept: Array = scenery[clear]
    return kept
