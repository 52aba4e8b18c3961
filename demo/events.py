"""Events that matter to the ego, one function each."""

from __future__ import annotations

import numpy as np

from autovla_rt.demo import road
from autovla_rt.demo.draft import SIZES, Draft
from autovla_rt.demo.road import LANE
from autovla_rt.demo.state import (
    BARRIER,
    BRAKER,
    CAR,
    CONE,
    CROSSER,
    CUT_IN,
    MAIN_PATH,
    PEDESTRIAN,
    ROUTE_PATH,
    STATIC,
    TRAFFIC,
    TRUCK,
)

EVENTS = ("free", "lead", "cut_in", "pedestrian", "light", "construction", "stopped")
EVENT_SHARES = (0.22, 0.17, 0.12, 0.14, 0.15, 0.12, 0.08)


def _free(draft: Draft, place: float) -> None:
    """Draw nothing: the way is clear."""


def _lead(draft: Draft, place: float) -> None:
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


def _stopped(draft: Draft, place: float) -> None:
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


def _cut_in(draft: Draft, place: float) -> None:
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


def _pedestrian(draft: Draft, place: float) -> None:
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


def _light(draft: Draft, place: float) -> None:
    """Draw a queue before the light now and then; the light itself belongs to the junction."""
    rng, along = draft.rng, draft.layout.stop_on_route - 3.5
    if rng.random() < 0.35:
        for _ in range(int(rng.integers(1, 3))):
            draft.add(CAR, ROUTE_PATH, along, 0.0, rule=TRAFFIC, p0=draft.limit * 0.8)
            along -= 8.0
    draft.busy.append((place - 45, place + 25))


def _construction(draft: Draft, place: float) -> None:
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


DRAWERS = {
    "free": _free,
    "lead": _lead,
    "cut_in": _cut_in,
    "pedestrian": _pedestrian,
    "light": _light,
    "construction": _construction,
    "stopped": _stopped,
}
