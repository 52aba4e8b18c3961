"""The numbers of a world: columns of its arrays, kinds, rules and colours.

All state is in arrays, so that a world is copied by copying them. Units: metres, seconds,
radians.
"""

from __future__ import annotations

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
"""The path that an agent's position is given on."""

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
