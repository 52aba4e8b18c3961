"""One world at one moment."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from autovla_rt.demo import simulation, state, traffic
from autovla_rt.demo.road import Array, Layout
from autovla_rt.demo.state import ALONG, SPEED


@dataclass
class World:
    """A world at one moment. `copy` before anything that moves it, to come back.

    Attributes:
        layout: Roads and route.
        facts: [NUM_FACTS], see state.py.
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

    def step(self, acceleration: float, curvature: float, *, frozen: bool = False) -> None:
        """Move everything by 0.1 s, the ego by a controller's command (m/s², 1/m).

        `frozen` is as for `advance`.
        """
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
            frozen,
        )
        self.time += state.DT

    def freeze_light(self) -> None:
        """Let the light keep its present colour."""
        self.facts[state.FROZEN_LIGHT] = traffic.light_at(self.facts, self.time)

    @property
    def light(self) -> int:
        """Colour of the ego's light: NO_LIGHT, GREEN, AMBER or RED."""
        return traffic.light_at(self.facts, self.time)

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
        lateral = self.ego[SPEED] ** 2 * self.ego[state.CURVATURE]
        return float(np.hypot(self.ego[state.ACCELERATION], lateral))
