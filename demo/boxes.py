"""Everything that stands on the ground, as upright boxes."""

from __future__ import annotations

import numpy as np

from autovla_rt.demo.camera import AGENT_ID, SCENERY_ID
from autovla_rt.demo.jit import kernel
from autovla_rt.demo.road import (
    CROSS_HALF,
    JUNCTION,
    LANE,
    MAIN_HALF,
    MAIN_LANES,
    NO_PLACE,
    STOP_LINE,
    Array,
    place,
)
from autovla_rt.demo.scenery import HOUSE
from autovla_rt.demo.state import (
    A_ACCELERATION,
    A_HEADING,
    A_LEFT,
    A_SPEED,
    A_X,
    A_Y,
    ACTIVE,
    BARRIER,
    CAR,
    COLOUR,
    CONE,
    HEIGHT,
    KIND,
    LENGTH,
    NO_LIGHT,
    P2,
    PEDESTRIAN,
    RULE,
    STATIC,
    TRUCK,
    WIDTH,
    X,
    Y,
)

# Columns of a box [13].
(B_X, B_Y, B_LOW, B_HEADING, B_LENGTH, B_WIDTH, B_HEIGHT, B_SHAPE, B_RED, B_GREEN, B_BLUE) = range(
    11
)
B_EXTRA, B_ID = 11, 12
BOX_COLUMNS = 13
PLAIN, CAR_BODY, CAR_CABIN, CONE_SHAPE, STRIPES, LAMPS, WALL, CROWN, PERSON = range(9)
MAX_BOXES = 260

VIEW_DISTANCE = 170.0

CAR_COLOURS = np.array(
    [
        [168, 34, 34],
        [34, 70, 150],
        [220, 220, 222],
        [40, 42, 46],
        [120, 124, 130],
        [214, 176, 40],
        [36, 104, 66],
        [132, 84, 52],
    ],
    np.float64,
)
SHIRTS = np.array(
    [
        [214, 60, 50],
        [50, 100, 210],
        [240, 200, 60],
        [240, 240, 240],
        [90, 180, 90],
        [200, 90, 190],
        [250, 140, 40],
        [60, 190, 200],
    ],
    np.float64,
)


@kernel
def add_box(
    boxes: Array,
    count: int,
    x: float,
    y: float,
    low: float,
    heading: float,
    length: float,
    width: float,
    height: float,
    shape: int,
    colour: Array,
    extra: float,
    identity: int,
) -> int:
    """Write one box and return the new count; a full list takes no more."""
    if count >= len(boxes):
        return count
    box = boxes[count]
    box[B_X], box[B_Y], box[B_LOW], box[B_HEADING] = x, y, low, heading
    box[B_LENGTH], box[B_WIDTH], box[B_HEIGHT] = length / 2, width / 2, height
    box[B_SHAPE], box[B_EXTRA], box[B_ID] = shape, extra, identity
    box[B_RED], box[B_GREEN], box[B_BLUE] = colour[0], colour[1], colour[2]
    return count + 1


@kernel
def build_boxes(
    agents: Array,
    scenery: Array,
    main: Array,
    facts: Array,
    light: int,
    ego: Array,
    boxes: Array,
) -> int:
    """Write the boxes of everything near the ego; returns how many there are."""
    count = 0
    for i in range(len(agents)):
        me = agents[i]
        x, y, heading, identity = me[A_X], me[A_Y], me[A_HEADING], AGENT_ID + i
        if (x - ego[X]) ** 2 + (y - ego[Y]) ** 2 > VIEW_DISTANCE**2:
            continue
        length, width, height = me[LENGTH], me[WIDTH], me[HEIGHT]
        paint = int(me[COLOUR])
        if me[KIND] == CAR:
            braking = me[RULE] != STATIC and (me[A_ACCELERATION] < -0.6 or me[A_SPEED] < 0.3)
            count = add_box(
                boxes, count, x, y, 0.25, heading, length, width, 0.65, CAR_BODY,
                CAR_COLOURS[paint], 1.0 if braking else 0.0, identity,
            )  # fmt: skip
            back = -0.06 * length
            count = add_box(
                boxes, count, x + back * np.cos(heading), y + back * np.sin(heading), 0.9, heading,
                length * 0.55, width * 0.86, height - 0.9, CAR_CABIN, CAR_COLOURS[paint], 0.0,
                identity,
            )  # fmt: skip
        elif me[KIND] == TRUCK:
            braking = me[RULE] != STATIC and (me[A_ACCELERATION] < -0.6 or me[A_SPEED] < 0.3)
            count = add_box(
                boxes, count, x, y, 0.3, heading, length, width, height - 0.3, CAR_BODY,
                CAR_COLOURS[paint] * 0.5 + 110.0, 1.0 if braking else 0.0, identity,
            )  # fmt: skip
        elif me[KIND] == PEDESTRIAN:
            facing = heading
            if me[ACTIVE] > 0.0:
                facing = heading + np.pi / 2 * (1.0 if me[A_LEFT] < me[P2] else -1.0)
            count = add_box(
                boxes, count, x, y, 0.0, facing, 0.45, 0.55, height - 0.3, PERSON, SHIRTS[paint],
                0.0, identity,
            )  # fmt: skip
            count = add_box(
                boxes, count, x, y, height - 0.3, facing, 0.28, 0.26, 0.3, PLAIN,
                np.array([214.0, 164.0, 134.0]), 0.0, identity,
            )  # fmt: skip
        elif me[KIND] == CONE:
            count = add_box(
                boxes, count, x, y, 0.0, heading, length, width, height, CONE_SHAPE,
                np.array([244.0, 104.0, 20.0]), 0.0, identity,
            )  # fmt: skip
        elif me[KIND] == BARRIER:
            count = add_box(
                boxes, count, x, y, 0.35, heading, length, width, height - 0.35, STRIPES,
                np.array([244.0, 120.0, 20.0]), 0.0, identity,
            )  # fmt: skip
    if light != NO_LIGHT and facts[JUNCTION] > NO_PLACE:
        count = add_lights(boxes, count, main, facts, light)
    for i in range(len(scenery)):
        x, y, heading = scenery[i, 0], scenery[i, 1], scenery[i, 2]
        if (x - ego[X]) ** 2 + (y - ego[Y]) ** 2 > 110.0**2:
            continue
        tint = scenery[i, 7]
        if scenery[i, 6] == HOUSE:
            wall = np.array([150.0 + 80.0 * tint, 132.0 + 60.0 * tint, 116.0 + 50.0 * tint])
            count = add_box(
                boxes, count, x, y, 0.0, heading, scenery[i, 3], scenery[i, 4], scenery[i, 5], WALL,
                wall, 0.0, SCENERY_ID,
            )  # fmt: skip
        else:
            count = add_box(
                boxes, count, x, y, 0.0, heading, 0.35, 0.35, 2.2, PLAIN,
                np.array([92.0, 70.0, 52.0]), 0.0, SCENERY_ID,
            )  # fmt: skip
            count = add_box(
                boxes, count, x, y, 1.9, heading, 2.6, 2.6, 3.2, CROWN,
                np.array([60.0 + 30.0 * tint, 104.0 + 24.0 * tint, 48.0]), 0.0, SCENERY_ID,
            )  # fmt: skip
    return count


@kernel
def add_lights(boxes: Array, count: int, main: Array, facts: Array, light: int) -> int:
    """Write the ego's traffic light: one right of its stop line, one over the far side."""
    dark = np.array([44.0, 46.0, 48.0])
    near = facts[JUNCTION] - facts[CROSS_HALF] - STOP_LINE + 0.5
    x, y, heading = place(main, near, -facts[MAIN_HALF] - 0.9)
    count = add_box(boxes, count, x, y, 0.0, heading, 0.2, 0.2, 2.2, PLAIN, dark, 0.0, SCENERY_ID)
    count = add_box(boxes, count, x, y, 2.2, heading, 0.5, 1.0, 2.4, LAMPS, dark, light, SCENERY_ID)
    far = facts[JUNCTION] + facts[CROSS_HALF] + 3.0
    for lane in range(int(facts[MAIN_LANES])):
        x, y, heading = place(main, far, -(lane + 0.5) * LANE)
        count = add_box(
            boxes, count, x, y, 4.3, heading, 0.5, 1.0, 2.4, LAMPS, dark, light, SCENERY_ID
        )
    x, y, heading = place(main, far, -facts[MAIN_HALF] - 0.9)
    count = add_box(boxes, count, x, y, 0.0, heading, 0.25, 0.25, 6.9, PLAIN, dark, 0.0, SCENERY_ID)
    x, y, heading = place(main, far + 0.1, -facts[MAIN_HALF] / 2 - 0.45)
    return add_box(
        boxes, count, x, y, 6.7, heading, 0.2, facts[MAIN_HALF] + 0.9, 0.2, PLAIN, dark, 0.0,
        SCENERY_ID,
    )  # fmt: skip
