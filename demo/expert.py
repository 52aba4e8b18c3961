"""The expert: IDM along the route, pure pursuit across it, and who makes it slow down.

Sources: Treiber, Hennecke, Helbing 2000; Coulter, Implementation of the pure pursuit path tracking
algorithm, 1992.
"""

from __future__ import annotations

import numpy as np

from autovla_rt.demo.jit import kernel
from autovla_rt.demo.road import JUNCTION, NO_PLACE, STEP, Array, place
from autovla_rt.demo.state import (
    A_ALONG,
    A_HEADING,
    A_SPEED,
    ACTIVE,
    ALONG,
    AMBER,
    AXLE,
    CAUSE_LIGHT,
    CAUSE_NONE,
    CAUSE_ZONE,
    DIRECTION,
    FRONT,
    HEADING,
    KIND,
    LENGTH,
    LIMIT,
    MAIN_PATH,
    PATH,
    PEDESTRIAN,
    R_ALONG,
    R_DRIFT,
    R_LEFT,
    RED,
    RULE,
    SPEED,
    STATIC,
    STOP,
    TRUCK,
    TURN,
    WIDTH,
    ZONE_END,
    ZONE_SHIFT,
    ZONE_SPEED,
    ZONE_START,
    X,
    Y,
)
from autovla_rt.demo.traffic import CLEAR, LATERAL_COMFORT, idm, light_at


@kernel
def target_left(zones: Array, along: float) -> float:
    """Return the lateral offset at which construction zones let the ego pass."""
    shift = 0.0
    for i in range(len(zones)):
        begin, end, value = zones[i, ZONE_START], zones[i, ZONE_END], zones[i, ZONE_SHIFT]
        ramp = 8.0 + 5.0 * abs(value)
        x = min((along - begin + ramp) / ramp, (end + ramp - along) / ramp)
        x = min(max(x, 0.0), 1.0)
        shift += value * x * x * (3.0 - 2.0 * x)
    return shift


@kernel
def steer(ego: Array, route: Array, zones: Array, interact: bool) -> float:
    """Return the curvature that leads to the route's lane ahead (pure pursuit)."""
    reach = min(max(0.8 * ego[SPEED], 3.2), 11.0)
    along = ego[ALONG] + reach
    x, y, _ = place(route, along, target_left(zones, along) if interact else 0.0)
    dx, dy = x - ego[X], y - ego[Y]
    left = -np.sin(ego[HEADING]) * dx + np.cos(ego[HEADING]) * dy
    # The point is sought from the middle, not from the rear axle: take the slip out.
    return float(2.0 * left / max(dx * dx + dy * dy, 1.0) * (1.0 - AXLE / (reach + AXLE)))


@kernel
def bend_speed(route: Array, along: float, limit: float) -> float:
    """Return the speed that lets the bends of the next 50 m be taken comfortably."""
    allowed = limit
    first = int(along / STEP)
    for i in range(max(0, first - 4), min(len(route), first + 100), 2):
        bend = abs(route[i, 3])
        if bend > 0.004:
            ahead = max(0.0, (i - first) * STEP)
            allowed = min(allowed, np.sqrt(LATERAL_COMFORT / bend + 2.0 * 1.3 * ahead))
    return allowed


@kernel
def crosser_blocks(agent: Array, ego: Array, corridor: float) -> bool:
    """Whether a pedestrian is in the ego's corridor, or will be when the ego comes."""
    if agent[ACTIVE] == 0.0:
        return False
    left = agent[R_LEFT] - corridor
    drift = agent[R_DRIFT]
    inside = abs(left) < 2.0
    approaching = drift * left < 0.0
    if not inside and not approaching:
        return False
    arrival = 0.0 if inside else (abs(left) - 2.0) / max(abs(drift), 0.1)
    ego_arrival = max(0.0, agent[R_ALONG] - ego[ALONG] - FRONT) / max(ego[SPEED], 1.0)
    return ego_arrival + 1.0 > arrival or (agent[R_ALONG] - ego[ALONG] < 25.0 and arrival < 3.0)


@kernel
def expert(
    ego: Array, agents: Array, zones: Array, facts: Array, route: Array, time: float, interact: bool
) -> tuple[float, float, int, float]:
    """Return (acceleration, curvature, cause, loss): what to do, and what limits it.

    `loss` is by how much the cause lowers the acceleration, m/s².
    """
    curvature = steer(ego, route, zones, interact)
    front = ego[ALONG] + FRONT
    desired = bend_speed(route, ego[ALONG], facts[LIMIT])
    free = idm(ego[SPEED], desired, CLEAR, 0.0)
    if not interact:
        return free, curvature, CAUSE_NONE, 0.0
    best, cause = free, CAUSE_NONE
    for i in range(len(zones)):
        if zones[i, ZONE_START] - 30.0 < front < zones[i, ZONE_END] + 4.0:
            ahead = max(0.0, zones[i, ZONE_START] - 6.0 - front)
            slow = idm(ego[SPEED], min(desired, np.sqrt(ZONE_SPEED**2 + 2.6 * ahead)), CLEAR, 0.0)
            if slow < best - 1e-6:
                best, cause = slow, CAUSE_ZONE
    for i in range(len(agents)):
        kind = agents[i, KIND]
        if kind > PEDESTRIAN:
            continue
        ahead = agents[i, R_ALONG] - ego[ALONG]
        if ahead < 0.0 or ahead > 90.0:
            continue
        corridor = target_left(zones, agents[i, R_ALONG])
        if kind == PEDESTRIAN:
            if not crosser_blocks(agents[i], ego, corridor):
                continue
            gap, closing = ahead - FRONT - 2.0, ego[SPEED]
        else:
            left = agents[i, R_LEFT] - corridor
            reach = (agents[i, WIDTH] + 2.0) / 2 + 0.3
            if abs(left) > reach and not (agents[i, R_DRIFT] * left < -0.05 and abs(left) < 3.2):
                continue
            relative = np.cos(
                agents[i, A_HEADING] - route[min(int(agents[i, R_ALONG] * 2), len(route) - 1), 2]
            )
            gap = ahead - FRONT - agents[i, LENGTH] / 2
            closing = ego[SPEED] - agents[i, A_SPEED] * relative
        acceleration = idm(ego[SPEED], desired, gap, closing)
        if acceleration < best - 1e-6:
            best, cause = acceleration, i
    stop, yields_to = must_stop(ego, agents, facts, time)
    if stop:
        acceleration = idm(ego[SPEED], desired, facts[STOP] - front + 1.2, ego[SPEED])
        if acceleration < best - 1e-6:
            best, cause = acceleration, yields_to
    return best, curvature, cause, free - best


@kernel
def must_stop(ego: Array, agents: Array, facts: Array, time: float) -> tuple[bool, int]:
    """Whether the ego has to stop at the line, and for what: the light, or an oncoming car."""
    ahead = facts[STOP] - ego[ALONG] - FRONT
    if facts[JUNCTION] <= NO_PLACE or ahead < -1.5:
        return False, CAUSE_NONE
    colour = light_at(facts, time)
    if colour == RED or (colour == AMBER and ahead > ego[SPEED] ** 2 / 6.0):
        return True, CAUSE_LIGHT
    if facts[TURN] > 0.0 and ahead < 30.0:
        for i in range(len(agents)):
            me = agents[i]
            if me[PATH] != MAIN_PATH or me[DIRECTION] > 0 or me[KIND] > TRUCK or me[RULE] == STATIC:
                continue
            distance = me[A_ALONG] - facts[JUNCTION]
            if (
                distance > -6.0
                and me[A_SPEED] > 1.0
                and distance / me[A_SPEED] < 5.5 + max(ahead, 0.0) / 6.0
            ):
                return True, i
    return False, CAUSE_NONE
