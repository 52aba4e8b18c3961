"""Traffic and people that do not matter to the ego."""

from __future__ import annotations

from autovla_rt.demo import road
from autovla_rt.demo.draft import Draft
from autovla_rt.demo.state import (
    CAR,
    CROSS_PATH,
    MAIN_PATH,
    PEDESTRIAN,
    STATIC,
    STROLLER,
    TRAFFIC,
    TRUCK,
)


def draw_background(draft: Draft) -> None:
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


def _crossing_car(draft: Draft) -> None:
    """Add a car on the crossing road, before its stop line."""
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


def _clear_of_junction(draft: Draft, along: float) -> bool:
    return bool(abs(along - draft.layout.numbers[road.JUNCTION]) > 22.0)
