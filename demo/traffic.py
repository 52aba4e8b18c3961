"""What other road users do: vehicles by the Intelligent Driver Model, lights, people on foot.

Source: Treiber, Hennecke, Helbing, Congested traffic states, 2000.
"""

from __future__ import annotations

import numpy as np

from autovla_rt.demo.jit import kernel
from autovla_rt.demo.road import (
    CROSS_CENTRE,
    CROSS_HALF,
    JUNCTION,
    MAIN_HALF,
    NO_PLACE,
    STEP,
    STOP_LINE,
    Array,
    place,
    project,
)
from autovla_rt.demo.state import (
    A_ACCELERATION,
    A_ALONG,
    A_HEADING,
    A_LEFT,
    A_SPEED,
    A_X,
    A_Y,
    ACTIVE,
    ALONG,
    AMBER,
    AMBER_TIME,
    BRAKER,
    CROSS_PATH,
    CROSSER,
    CUT_IN,
    DIRECTION,
    DT,
    FRONT,
    FROZEN_LIGHT,
    GREEN_TIME,
    HEADING,
    KIND,
    LENGTH,
    LIGHT,
    MAIN_PATH,
    NO_LIGHT,
    P0,
    P1,
    P2,
    P3,
    PATH,
    PHASE,
    R_ALONG,
    R_DRIFT,
    R_LEFT,
    RED,
    RED_TIME,
    ROUTE_PATH,
    RULE,
    SPEED,
    STATIC,
    STOP,
    STROLLER,
    TRUCK,
)

MAX_ACCELERATION, COMFORT_BRAKING, HARDEST_BRAKING = 1.8, 2.5, 7.0

TIME_GAP, JAM_GAP, LATERAL_COMFORT = 1.3, 2.0, 2.2
CLEAR = 1e6


@kernel
def light_at(facts: Array, time: float) -> int:
    """Return the colour of the main road's light, `NO_LIGHT` without one."""
    if facts[LIGHT] == 0.0:
        return NO_LIGHT
    if facts[FROZEN_LIGHT] >= 0.0:
        return int(facts[FROZEN_LIGHT])
    phase = (time + facts[PHASE]) % (facts[GREEN_TIME] + facts[AMBER_TIME] + facts[RED_TIME])
    if phase < facts[GREEN_TIME]:
        return 0
    return 1 if phase < facts[GREEN_TIME] + facts[AMBER_TIME] else 2


@kernel
def cross_light_at(facts: Array, time: float) -> int:
    """Return the colour of the crossing road's light, green within the main road's red.

    Without a light the crossing road gives way: always red.
    """
    if facts[LIGHT] == 0.0:
        return RED
    if facts[FROZEN_LIGHT] >= 0.0:
        return 2 if facts[FROZEN_LIGHT] < 2.0 else 0
    phase = (
        (time + facts[PHASE]) % (facts[GREEN_TIME] + facts[AMBER_TIME] + facts[RED_TIME])
        - facts[GREEN_TIME]
        - facts[AMBER_TIME]
    )
    return 0 if 2.0 < phase < facts[RED_TIME] - 4.0 else 2


@kernel
def idm(speed: float, desired: float, gap: float, closing: float) -> float:
    """Return the acceleration towards a desired speed behind an obstacle `gap` m ahead."""
    free = 1.0 - (speed / max(desired, 0.1)) ** 4
    acceleration = max(MAX_ACCELERATION * free, -COMFORT_BRAKING)
    if gap < CLEAR:
        wanted = JAM_GAP + max(
            0.0,
            speed * TIME_GAP
            + speed * closing / (2.0 * np.sqrt(MAX_ACCELERATION * COMFORT_BRAKING)),
        )
        acceleration = min(acceleration, MAX_ACCELERATION * (1.0 - (wanted / max(gap, 0.1)) ** 2))
    return max(acceleration, -HARDEST_BRAKING)


@kernel
def find(path: Array, x: float, y: float) -> int:
    """Return the sample of a path nearest to a point: a coarse search, then a fine one."""
    best, found = 1e18, 0
    for i in range(0, len(path), 8):
        distance = (path[i, 0] - x) ** 2 + (path[i, 1] - y) ** 2
        if distance < best:
            best, found = distance, i
    low, high = max(0, found - 8), min(len(path), found + 9)
    for i in range(low, high):
        distance = (path[i, 0] - x) ** 2 + (path[i, 1] - y) ** 2
        if distance < best:
            best, found = distance, i
    return found


@kernel
def locate_agent(agent: Array, route: Array, main: Array, cross: Array) -> None:
    """Write an agent's pose in the world and its coordinates on the route."""
    path = route if agent[PATH] == ROUTE_PATH else main if agent[PATH] == MAIN_PATH else cross
    x, y, heading = place(path, agent[A_ALONG], agent[A_LEFT])
    if agent[DIRECTION] < 0:
        heading += np.pi
    agent[A_X], agent[A_Y], agent[A_HEADING] = x, y, heading
    index = find(route, x, y)
    agent[R_ALONG], agent[R_LEFT] = project(route, x, y, index)


@kernel
def locate_all(agents: Array, route: Array, main: Array, cross: Array) -> None:
    """Write the poses of all agents."""
    for i in range(len(agents)):
        locate_agent(agents[i], route, main, cross)


@kernel
def traffic_gap(
    i: int, agents: Array, ego: Array, facts: Array, time: float
) -> tuple[float, float]:
    """Return (gap, closing speed) of a vehicle to what is next ahead in its lane."""
    me = agents[i]
    gap, closing = CLEAR, 0.0
    for j in range(len(agents)):
        other = agents[j]
        if (
            j == i
            or other[PATH] != me[PATH]
            or other[DIRECTION] != me[DIRECTION]
            or other[KIND] > TRUCK
        ):
            continue
        if abs(other[A_LEFT] - me[A_LEFT]) > 1.9:
            continue
        ahead = (other[A_ALONG] - me[A_ALONG]) * me[DIRECTION]
        if 0.0 < ahead < gap + (other[LENGTH] + me[LENGTH]) / 2:
            gap, closing = ahead - (other[LENGTH] + me[LENGTH]) / 2, me[A_SPEED] - other[A_SPEED]
    # The ego, where it shares the lane.
    if me[PATH] == ROUTE_PATH or abs(me[R_LEFT]) < 1.9:
        relative = np.cos(me[A_HEADING] - ego[HEADING])
        ahead = ego[ALONG] - me[R_ALONG]
        if relative > 0.5 and ahead > 0 and abs(me[R_LEFT]) < 1.9:
            distance = ahead - FRONT - me[LENGTH] / 2
            if distance < gap:
                gap, closing = distance, me[A_SPEED] - ego[SPEED]
    # The light.
    if facts[JUNCTION] > NO_PLACE:
        colour = light_at(facts, time) if me[PATH] < CROSS_PATH else cross_light_at(facts, time)
        if me[PATH] == ROUTE_PATH:
            line = facts[STOP]
        elif me[PATH] == MAIN_PATH:
            line = facts[JUNCTION] - me[DIRECTION] * (facts[CROSS_HALF] + STOP_LINE)
        else:
            line = facts[CROSS_CENTRE] - me[DIRECTION] * (facts[MAIN_HALF] + STOP_LINE)
        ahead = (line - me[A_ALONG]) * me[DIRECTION] - me[LENGTH] / 2
        stops = colour == RED or (colour == AMBER and ahead > me[A_SPEED] ** 2 / 6.0)
        if stops and ahead > -1.0 and ahead + 1.2 < gap:
            gap, closing = ahead + 1.2, me[A_SPEED]
    return gap, closing


@kernel
def drive_agent(i: int, agents: Array, ego: Array, facts: Array, time: float, frozen: bool) -> None:
    """Move one agent along its path for one step; a frozen world starts no new behaviour."""
    me = agents[i]
    rule = int(me[RULE])
    if rule == STATIC:
        return
    ahead = me[R_ALONG] - ego[ALONG]
    if rule == STROLLER:
        me[A_ALONG] += me[DIRECTION] * me[P0] * DT
        return
    if rule == CROSSER:
        if not frozen and me[ACTIVE] == 0.0 and 0.0 < ahead < me[P1]:
            me[ACTIVE] = 1.0
        step = me[P2] - me[A_LEFT]
        me[R_DRIFT] = 0.0
        if me[ACTIVE] > 0.0 and abs(step) > 0.02:
            me[R_DRIFT] = np.sign(step) * me[P0]
            me[A_LEFT] += np.sign(step) * min(abs(step), me[P0] * DT)
        me[A_SPEED] = abs(me[R_DRIFT])
        return
    desired = me[P0]
    if rule == BRAKER:
        if not frozen and me[ACTIVE] == 0.0 and 0.0 < ahead < me[P1]:
            me[ACTIVE] = time + 1e-3
        if me[ACTIVE] > 0.0 and (frozen or time - me[ACTIVE] < me[P3]):
            desired = me[P2]
    if rule == CUT_IN:
        if not frozen and me[ACTIVE] == 0.0 and me[P3] < ahead < me[P1]:
            me[ACTIVE] = 1.0
        step = me[P2] - me[A_LEFT]
        me[R_DRIFT] = 0.0
        if me[ACTIVE] > 0.0 and abs(step) > 0.01:
            me[R_DRIFT] = np.sign(step) * min(1.3, 0.25 * me[A_SPEED] + 0.2, abs(step) / STEP)
            me[A_LEFT] += me[R_DRIFT] * DT
    gap, closing = traffic_gap(i, agents, ego, facts, time)
    me[A_ACCELERATION] = idm(me[A_SPEED], desired, gap, closing)
    if rule == BRAKER and desired < me[P0] and me[A_SPEED] > desired + 0.3:
        me[A_ACCELERATION] = min(me[A_ACCELERATION], -3.0)
    before = me[A_SPEED]
    me[A_SPEED] = max(0.0, before + me[A_ACCELERATION] * DT)
    me[A_ALONG] += me[DIRECTION] * (before + me[A_SPEED]) / 2 * DT
