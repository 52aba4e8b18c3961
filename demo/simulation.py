"""How a world moves: the ego as a kinematic bicycle, everything else by its rule."""

from __future__ import annotations

import numpy as np

from autovla_rt.demo.expert import expert
from autovla_rt.demo.jit import kernel
from autovla_rt.demo.road import Array, project
from autovla_rt.demo.state import (
    A_HEADING,
    A_X,
    A_Y,
    ACCELERATION,
    ALONG,
    AXLE,
    CAUSE_LIGHT,
    CURVATURE,
    DT,
    HEADING,
    LENGTH,
    SPEED,
    WIDTH,
    X,
    Y,
)
from autovla_rt.demo.traffic import HARDEST_BRAKING, drive_agent, find, locate_all


@kernel
def move_ego(ego: Array, route: Array, acceleration: float, curvature: float) -> None:
    """Move the ego by one step of the kinematic bicycle about its middle.

    Limits: jerk 10 m/s³ (16 when braking), curvature 0.19 1/m at a rate of 0.25 1/(m s).
    """
    change = acceleration - ego[ACCELERATION]
    ego[ACCELERATION] += min(max(change, -1.6), 1.0)
    ego[ACCELERATION] = min(max(ego[ACCELERATION], -HARDEST_BRAKING), 2.5)
    curvature = min(max(curvature, -0.19), 0.19)
    ego[CURVATURE] += min(max(curvature - ego[CURVATURE], -0.025), 0.025)
    before = ego[SPEED]
    ego[SPEED] = max(0.0, before + ego[ACCELERATION] * DT)
    if ego[SPEED] == 0.0 and ego[ACCELERATION] < 0.0:
        ego[ACCELERATION] = 0.0
    travelled = (before + ego[SPEED]) / 2 * DT
    course = ego[HEADING] + np.arcsin(ego[CURVATURE] * AXLE)
    ego[X] += travelled * np.cos(course)
    ego[Y] += travelled * np.sin(course)
    ego[HEADING] += travelled * ego[CURVATURE]
    index = find(route, ego[X], ego[Y])
    ego[ALONG] = project(route, ego[X], ego[Y], index)[0]


@kernel
def advance(
    ego: Array,
    agents: Array,
    zones: Array,
    facts: Array,
    route: Array,
    main: Array,
    cross: Array,
    time: float,
    noise: Array,
    interact: bool,
    frozen: bool,
    losses: Array,
) -> float:
    """Let the expert drive for len(noise) steps; returns the time reached.

    `noise` [n, 2] is added to its acceleration and curvature. `losses` [agents + 2] sums up what
    each cause took from the acceleration (the light and the zones last).
    """
    for step in range(len(noise)):
        acceleration, curvature, cause, loss = expert(
            ego, agents, zones, facts, route, time, interact
        )
        if cause >= CAUSE_LIGHT:
            losses[len(agents) + cause - CAUSE_LIGHT] += loss
        elif cause >= 0:
            losses[cause] += loss
        move_ego(ego, route, acceleration + noise[step, 0], curvature + noise[step, 1])
        move_agents(ego, agents, facts, route, main, cross, time, frozen)
        time += DT
    return time


@kernel
def move_agents(
    ego: Array,
    agents: Array,
    facts: Array,
    route: Array,
    main: Array,
    cross: Array,
    time: float,
    frozen: bool,
) -> None:
    """Move everything but the ego by one step."""
    for i in range(len(agents)):
        drive_agent(i, agents, ego, facts, time, frozen)
    locate_all(agents, route, main, cross)


@kernel
def overlap(ax: float, ay: float, ah: float, al: float, aw: float, b: Array) -> bool:
    """Whether a box (middle, heading, length, width) overlaps an agent's (separating axes)."""
    dx, dy = b[A_X] - ax, b[A_Y] - ay
    if dx * dx + dy * dy > 64.0:
        return False
    bl, bw, bh = b[LENGTH] / 2, b[WIDTH] / 2, b[A_HEADING]
    al, aw = al / 2, aw / 2
    c, s = abs(np.cos(ah - bh)), abs(np.sin(ah - bh))
    along, across = np.cos(ah) * dx + np.sin(ah) * dy, -np.sin(ah) * dx + np.cos(ah) * dy
    if abs(along) > al + bl * c + bw * s or abs(across) > aw + bl * s + bw * c:
        return False
    along, across = np.cos(bh) * dx + np.sin(bh) * dy, -np.sin(bh) * dx + np.cos(bh) * dy
    return not (abs(along) > bl + al * c + aw * s or abs(across) > bw + al * s + aw * c)
