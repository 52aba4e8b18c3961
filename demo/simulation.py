"""What moves: the ego as a kinematic bicycle, traffic and pedestrians, and the expert that drives.

All state is in arrays, so that a world is copied by copying them. Longitudinal behaviour is the
Intelligent Driver Model (Treiber, Hennecke, Helbing 2000), lateral behaviour pure pursuit
(Coulter 1992). Units: metres, seconds, radians.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from autovla_rt.demo.jit import kernel
from autovla_rt.demo.road import (
    CROSS_CENTRE,
    CROSS_HALF,
    JUNCTION,
    MAIN_HALF,
    NO_PLACE,
    STEP,
    STOP_LINE,
    place,
    project,
)

Array = NDArray[np.float64]

DT = 0.1

# Columns of the ego's state [7].
X, Y, HEADING, SPEED, ACCELERATION, CURVATURE, ALONG = range(7)
EGO_COLUMNS = 7
EGO_LENGTH, EGO_WIDTH, AXLE = 4.8, 2.0, 1.4
FRONT = EGO_LENGTH / 2

# Columns of an agent [23].
(KIND, PATH, DIRECTION, A_ALONG, A_LEFT, A_SPEED, A_ACCELERATION, LENGTH, WIDTH, HEIGHT) = range(10)
(COLOUR, RULE, P0, P1, P2, P3, ACTIVE, A_X, A_Y, A_HEADING, R_ALONG, R_LEFT, R_DRIFT) = range(
    10, 23
)
AGENT_COLUMNS = 23

CAR, TRUCK, PEDESTRIAN, CONE, BARRIER = range(5)
"""Kinds of agents."""

STATIC, TRAFFIC, BRAKER, CUT_IN, CROSSER, STROLLER = range(6)
"""Rules of behaviour. Parameters of a rule are P0 to P3 of the agent:

TRAFFIC: P0 desired speed.
BRAKER: P0 desired speed; once the ego is less than P1 m behind, P2 for P3 s.
CUT_IN: P0 desired speed; once it is less than P1 m ahead of the ego (P3 m at least), it moves to
the offset P2.
CROSSER: walks at P0 to the offset P2 once the ego is less than P1 m away.
STROLLER: walks along at P0.
"""

ROUTE_PATH, MAIN_PATH, CROSS_PATH = range(3)

# Facts of a world [16]: those of the layout first (see road.py), then these.
(ENTRY, STOP, TURN, LIMIT, LIGHT, GREEN_TIME, AMBER_TIME, RED_TIME, PHASE, FROZEN_LIGHT) = range(
    6, 16
)
NUM_FACTS = 16

NO_LIGHT, GREEN, AMBER, RED = -1, 0, 1, 2

# Columns of a construction zone [3]: positions on the route, and where to pass (offset).
ZONE_START, ZONE_END, ZONE_SHIFT = range(3)
ZONE_SPEED = 6.5

CAUSE_NONE, CAUSE_LIGHT, CAUSE_ZONE = -1, 1000, 1001
"""What limits the expert: nothing, or the light, a zone, else the index of an agent."""

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
