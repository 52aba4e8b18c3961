"""What a scenario is drawn into."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from autovla_rt.demo.road import Array, Layout
from autovla_rt.demo.state import (
    A_ALONG,
    A_LEFT,
    A_SPEED,
    ACTIVE,
    AGENT_COLUMNS,
    BARRIER,
    CAR,
    COLOUR,
    CONE,
    DIRECTION,
    HEIGHT,
    KIND,
    LENGTH,
    P0,
    PATH,
    PEDESTRIAN,
    RULE,
    TRUCK,
    WIDTH,
)

SIZES = {
    CAR: (4.5, 1.85, 1.5),
    TRUCK: (7.5, 2.3, 3.0),
    PEDESTRIAN: (0.5, 0.55, 1.75),
    CONE: (0.45, 0.45, 0.85),
    BARRIER: (0.3, 1.6, 1.3),
}
"""Kind -> length, width, height in metres."""

NUM_COLOURS = 8


@dataclass
class Draft:
    """What a scenario is drawn into.

    Attributes:
        rng: Source of all that is drawn.
        layout: Roads and route.
        limit: Speed limit, m/s.
        start: Where the ego begins, position along the route, m.
        agents: Rows so far.
        zones: Construction zones so far.
        busy: Stretches of the route that background traffic stays out of.
    """

    rng: np.random.Generator
    layout: Layout
    limit: float
    start: float = 0.0
    agents: list[Array] = field(default_factory=list)
    zones: list[tuple[float, float, float]] = field(default_factory=list)
    busy: list[tuple[float, float]] = field(default_factory=list)

    def add(self, kind: int, path: int, along: float, left: float, **columns: float) -> Array:
        """Add an agent of usual size at a place of a path; `columns` as in `_COLUMNS`."""
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
