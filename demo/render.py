"""What the three cameras see: pinhole pictures of a world, by casting rays onto ground and boxes.

Everything is a kernel without the interpreter lock: twelve frames of 196x112 take a few
milliseconds, so training draws them on the fly. Markings are smoothed by the size of a pixel's
footprint on the ground, so that a small frame looks like a large one scaled down.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from autovla_rt.config import CAMERAS
from autovla_rt.demo.jit import kernel
from autovla_rt.demo.road import (
    CROSS_CENTRE,
    CROSS_HALF,
    CROSSWALK_FAR,
    CROSSWALK_NEAR,
    JUNCTION,
    LANE,
    MAIN_HALF,
    MAIN_LANES,
    NO_PLACE,
    STOP_LINE,
    ZEBRA,
    chart,
    chart_at,
    chart_origin,
    on_road,
    place,
)
from autovla_rt.demo.scenario import HOUSE, World
from autovla_rt.demo.simulation import (
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
    HEADING,
    HEIGHT,
    KIND,
    LENGTH,
    NO_LIGHT,
    PEDESTRIAN,
    RULE,
    STATIC,
    TRUCK,
    WIDTH,
    X,
    Y,
)

Array = NDArray[np.float64]
Pixels = NDArray[np.uint8]
Ids = NDArray[np.int16]

FIELD_OF_VIEW = np.radians(70.0)
YAWS = {"front": 0.0, "front_left": np.radians(55.0), "front_right": np.radians(-55.0)}
CAMERA_AHEAD, CAMERA_HEIGHT, HORIZON = 0.6, 1.55, 0.45
"""Camera in front of and above the ego's middle (m); the horizon's place, 0 = top edge."""

# What a pixel shows: one of these, or AGENT_ID + the agent's index.
SKY_ID, GRASS_ID, ASPHALT_ID, PAINT_ID, SCENERY_ID, RED_ID, AMBER_ID, GREEN_ID = range(8)
AGENT_ID = 16

# Columns of a box [13].
(B_X, B_Y, B_LOW, B_HEADING, B_LENGTH, B_WIDTH, B_HEIGHT, B_SHAPE, B_RED, B_GREEN, B_BLUE) = range(
    11
)
B_EXTRA, B_ID = 11, 12
BOX_COLUMNS = 13
PLAIN, CAR_BODY, CAR_CABIN, CONE_SHAPE, STRIPES, LAMPS, WALL, CROWN, PERSON = range(9)
MAX_BOXES = 260

# What the world looks like [14]: sun's direction, its share of the light, sky, grass, asphalt,
# gain, noise.
(SUN_X, SUN_Y, SUN_Z, SUN_SHARE, SKY_R, SKY_G, SKY_B, HAZE_R, HAZE_G, HAZE_B) = range(10)
GRASS_G, ASPHALT, GAIN, NOISE = 10, 11, 12, 13
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
LAMP_COLOURS = np.array([[60, 255, 110], [255, 190, 40], [255, 50, 40]], np.float64)
"""Of green, amber and red."""


@dataclass(frozen=True)
class View:
    """What one camera sees at one moment.

    Attributes:
        pixels: uint8 [h, w, 3].
        ids: int16 [h, w], what each pixel shows (`SKY_ID` and so on, agents from `AGENT_ID`).
        depths: float32 [h, w], metres along the camera's axis; infinite in the sky.
    """

    pixels: Pixels
    ids: Ids
    depths: NDArray[np.float32]


def look_of(world: World) -> Array:
    """Return the numbers that the seed of a world's look stands for."""
    rng = np.random.default_rng(world.look)
    azimuth, height = rng.uniform(0, 2 * np.pi), rng.uniform(0.35, 1.2)
    overcast = rng.uniform(0, 1)
    grey = np.array([150, 160, 172])
    sky = (1 - overcast) * np.array([84, 140, 208]) + overcast * grey
    haze = (1 - overcast) * np.array([200, 218, 232]) + overcast * np.array([188, 194, 200])
    return np.array(
        [
            np.cos(azimuth) * np.cos(height),
            np.sin(azimuth) * np.cos(height),
            np.sin(height),
            0.5 * (1 - 0.75 * overcast),
            *sky,
            *haze,
            rng.uniform(0.8, 1.2),
            rng.uniform(72, 104),
            rng.uniform(0.72, 1.18),
            rng.uniform(1.5, 5.0),
        ]
    )


def render(world: World, width: int, height: int) -> dict[str, View]:
    """Return what every camera of `CAMERAS` sees of a world now, in pictures of `width` x `height`.

    The same world and size give the same bytes.
    """
    return render_moments([world], width, height)[0]


def render_moments(moments: Sequence[World], width: int, height: int) -> list[dict[str, View]]:
    """Return what every camera sees at some moments of one world, at most 60 m of driving apart."""
    last = moments[-1]
    look = look_of(last)
    grid = chart(last.layout.main, last.layout.cross, last.ego[X], last.ego[Y])
    corner = chart_origin(last.ego[X]), chart_origin(last.ego[Y])
    return [_views(world, look, grid, corner, width, height) for world in moments]


def _views(
    world: World, look: Array, grid: Array, corner: tuple[float, float], width: int, height: int
) -> dict[str, View]:
    boxes = np.zeros((MAX_BOXES, BOX_COLUMNS))
    count = build_boxes(
        world.agents, world.scenery, world.layout.main, world.facts, world.light, world.ego, boxes
    )
    views = {}
    for index, camera in enumerate(CAMERAS):
        pixels = np.empty((height, width, 3), np.uint8)
        ids = np.empty((height, width), np.int16)
        depths = np.empty((height, width), np.float32)
        seed = (world.look + round(world.time * 10) * 3 + index) % (1 << 31)
        draw_view(
            world.ego, YAWS[camera], boxes[:count], grid, *corner, world.facts, look, seed, pixels,
            ids, depths,
        )  # fmt: skip
        views[camera] = View(pixels, ids, depths)
    return views


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
        x, y, heading, identity = me[A_X], me[A_Y], me[A_HEADING], 16 + i
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
                facing = heading + np.pi / 2 * (1.0 if me[A_LEFT] < me[14] else -1.0)
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


@kernel
def grain(a: int, b: int, c: int) -> float:
    """Return a number in -1..1 that three integers stand for (a hash, not a random state)."""
    h = np.uint32(a) * np.uint32(374761393) + np.uint32(b) * np.uint32(668265263)
    h += np.uint32(c) * np.uint32(2246822519)
    h = (h ^ (h >> np.uint32(13))) * np.uint32(1274126177)
    h ^= h >> np.uint32(16)
    return np.float64(h & np.uint32(65535)) / 32767.5 - 1.0


@kernel
def band(distance: float, half: float, footprint: float) -> float:
    """Return the share of a pixel that lies within `half` of a line, 0..1."""
    edge = max(footprint, 1e-3)
    return min(max((half - abs(distance)) / edge + 0.5, 0.0), 1.0) * min(1.0, 2 * half / edge)


@kernel
def paint_on(
    along: float,
    left: float,
    half: float,
    lanes: float,
    footprint: float,
) -> tuple[float, float]:
    """Return (white, yellow) lane markings of a road at road coordinates, shares 0..1."""
    white = band(abs(left) - half + 0.25, 0.08, footprint)
    if lanes > 1.5:
        dash = 1.0 if along % 9.0 < 3.5 else 0.0
        white = max(white, band(abs(left) - LANE, 0.08, footprint) * dash)
    return white, band(left, 0.16, footprint)


@kernel
def zebra_at(ahead: float, across: float, half: float, footprint: float) -> float:
    """Return how much white a crossing for pedestrians of 3 m has, `ahead` m from its middle."""
    if abs(across) > half - 0.2:
        return 0.0
    stripe = 1.0 if (across + 40.0) % 1.2 < 0.62 else 0.0
    if footprint > 0.6:
        stripe = 0.5
    return band(ahead, 1.5, footprint) * stripe


@kernel
def ground(
    x: float, y: float, footprint: float, at: Array, facts: Array, look: Array, out: Array
) -> int:
    """Write the colour of the ground at road coordinates `at`; returns what it is."""
    main_along, main_left, cross_left = at[0], at[1], at[3]
    texture = 1.0
    if footprint < 0.6:
        cell = grain(int(np.floor(x * 3.0)), int(np.floor(y * 3.0)), 7)
        texture += 0.05 * cell * (1.0 - footprint / 0.6)
    patch = 0.03 * grain(int(np.floor(x / 7.0)), int(np.floor(y / 7.0)), 3)
    asphalt = on_road(main_along, main_left, cross_left, facts, 0.0)
    if not asphalt:
        main_out = abs(main_left) - facts[MAIN_HALF]
        cross_out = abs(cross_left) - facts[CROSS_HALF]
        beside = min(main_out, cross_out)
        if beside < 3.6:
            kerb = 1.12 if beside < 0.25 else 1.0
            out[0], out[1], out[2] = (
                158 * texture * kerb,
                152 * texture * kerb,
                144 * texture * kerb,
            )
        else:
            green = look[GRASS_G] * (texture + 2 * patch)
            out[0], out[1], out[2] = 92 * green, 120 * green, 62 * green
        return GRASS_ID
    level = look[ASPHALT] * (texture + patch)
    white, yellow = 0.0, 0.0
    to_junction = abs(main_along - facts[JUNCTION])
    on_main = abs(main_left) <= facts[MAIN_HALF]
    on_cross = abs(cross_left) <= facts[CROSS_HALF]
    if on_main and to_junction > facts[CROSS_HALF] + STOP_LINE:
        white, yellow = paint_on(
            main_along, main_left, facts[MAIN_HALF], facts[MAIN_LANES], footprint
        )
        ahead = main_along - facts[ZEBRA]
        if abs(ahead) < 3.0:
            white = max(white, zebra_at(ahead, main_left, facts[MAIN_HALF], footprint))
    elif on_cross and abs(main_left) > facts[MAIN_HALF] + STOP_LINE:
        white, yellow = paint_on(at[2], cross_left, facts[CROSS_HALF], 1.0, footprint)
    middle = (CROSSWALK_NEAR + CROSSWALK_FAR) / 2
    if on_main and to_junction < facts[CROSS_HALF] + STOP_LINE + 1.0:
        ahead = to_junction - facts[CROSS_HALF]
        incoming = main_left * (main_along - facts[JUNCTION]) > 0.0
        white = max(white, zebra_at(ahead - middle, main_left, facts[MAIN_HALF], footprint))
        if incoming:
            white = max(white, band(ahead - STOP_LINE, 0.22, footprint))
    elif on_cross and to_junction < 40.0 and abs(main_left) < facts[MAIN_HALF] + STOP_LINE + 1.0:
        ahead = abs(main_left) - facts[MAIN_HALF]
        white = max(white, zebra_at(ahead - middle, cross_left, facts[CROSS_HALF], footprint))
        side = 1.0 if at[2] > facts[CROSS_CENTRE] else -1.0
        if cross_left * side > 0.0:
            white = max(white, band(ahead - STOP_LINE, 0.22, footprint))
    out[0] = level + (228.0 - level) * white + (206.0 - level) * yellow
    out[1] = level + (228.0 - level) * white + (166.0 - level) * yellow
    out[2] = level * 1.03 + (224.0 - level) * white + (44.0 - level) * yellow
    return PAINT_ID if white + yellow > 0.5 else ASPHALT_ID


@kernel
def shade_box(
    box: Array, face: int, a: float, b: float, up: float, light: float, out: Array
) -> int:
    """Write the colour of a hit; returns what it shows, or -1 where the shape is open.

    `face` is 0 front, 1 back, 2 left, 3 right, 4 top. `a` is the hit's place along the box (-1
    back to 1 front), `b` across it (-1 right to 1 left), `up` its height (0..1).
    """
    red, green, blue, shape = box[B_RED], box[B_GREEN], box[B_BLUE], int(box[B_SHAPE])
    identity = int(box[B_ID])
    glow = False
    if shape == CAR_BODY:
        tall = box[B_HEIGHT] > 1.5
        lamp_low, lamp_high = (0.08, 0.26) if tall else (0.38, 0.78)
        if face < 2 and abs(b) > 0.6 and lamp_low < up < lamp_high:
            glow = face == 0 or box[B_EXTRA] > 0
            if face == 0:
                red, green, blue = 245.0, 242.0, 222.0
            else:
                red, green, blue = (255.0, 40.0, 34.0) if glow else (120.0, 16.0, 16.0)
        elif face in (2, 3) and up < 0.45 - 0.3 * tall and 0.45 < abs(a) < 0.8:
            red, green, blue = 22.0, 22.0, 24.0
        elif up < 0.12:
            red, green, blue = 30.0, 30.0, 32.0
        elif face == 0 and tall and 0.55 < up < 0.9:
            red, green, blue = 44.0, 54.0, 64.0
    elif shape == CAR_CABIN:
        if face < 4 and 0.1 < up < 0.85 and abs(a if face > 1 else b) < 0.92:
            red, green, blue = 42.0, 52.0, 62.0
    elif shape == CONE_SHAPE:
        if abs(b if face < 2 else a) > 1.05 - up:
            return -1
        if 0.4 < up < 0.65:
            red, green, blue = 240.0, 240.0, 236.0
    elif shape == STRIPES:
        if (b * 2.0 + up + 8.0) % 1.0 < 0.5:
            red, green, blue = 244.0, 244.0, 240.0
    elif shape == PERSON:
        if up < 0.5:
            red, green, blue = 44.0, 46.0, 66.0
            if abs(b) < 0.12 and face < 2:
                return -1
    elif shape == WALL:
        if face < 4 and up < 0.93:
            across = (a * box[B_LENGTH] if face > 1 else b * box[B_WIDTH]) + 40.0
            floor = up * box[B_HEIGHT]
            if across % 2.6 > 1.3 and floor % 3.0 > 1.2 and floor % 3.0 < 2.5:
                red, green, blue = red * 0.45, green * 0.48, blue * 0.55
    elif shape == LAMPS and face == 1:
        for lamp in range(3):
            centre = (0.19, 0.5, 0.81)[lamp]
            if (b / 0.62) ** 2 + ((up - centre) / 0.145) ** 2 < 1.0:
                lit = int(box[B_EXTRA]) == lamp
                glow = lit
                power = 1.0 if lit else 0.16
                red = LAMP_COLOURS[lamp, 0] * power
                green = LAMP_COLOURS[lamp, 1] * power
                blue = LAMP_COLOURS[lamp, 2] * power
                if lit:
                    identity = GREEN_ID - lamp
    factor = 1.0 if glow else light
    out[0], out[1], out[2] = red * factor, green * factor, blue * factor
    return identity


@kernel
def draw_view(
    ego: Array,
    yaw: float,
    boxes: Array,
    grid: Array,
    x0: float,
    y0: float,
    facts: Array,
    look: Array,
    seed: int,
    pixels: Pixels,
    ids: Ids,
    depths: NDArray[np.float32],
) -> None:
    """Draw one camera's view into `pixels` [h, w, 3], `ids` and `depths` [h, w]."""
    height, width = ids.shape
    focal = width / 2 / np.tan(FIELD_OF_VIEW / 2)
    heading = ego[HEADING] + yaw
    cos, sin = np.cos(heading), np.sin(heading)
    camera_x = ego[X] + CAMERA_AHEAD * np.cos(ego[HEADING])
    camera_y = ego[Y] + CAMERA_AHEAD * np.sin(ego[HEADING])
    colours = np.empty((height, width, 3), np.float32)
    draw_ground(
        camera_x, camera_y, cos, sin, focal, grid, x0, y0, facts, look, colours, ids, depths
    )  # fmt: skip
    for i in range(len(boxes)):
        draw_shadow(camera_x, camera_y, cos, sin, focal, boxes[i], colours, ids)
    for i in range(len(boxes)):
        draw_box(camera_x, camera_y, cos, sin, focal, boxes[i], look, colours, ids, depths)
    gain, noise = look[GAIN], look[NOISE]
    for row in range(height):
        for column in range(width):
            speckle = noise * (grain(row, column, seed) + grain(row + 5000, column, seed))
            for channel in range(3):
                value = colours[row, column, channel] * gain + speckle
                pixels[row, column, channel] = np.uint8(min(max(value, 0.0), 255.0))


@kernel
def draw_ground(
    camera_x: float,
    camera_y: float,
    cos: float,
    sin: float,
    focal: float,
    grid: Array,
    x0: float,
    y0: float,
    facts: Array,
    look: Array,
    colours: NDArray[np.float32],
    ids: Ids,
    depths: NDArray[np.float32],
) -> None:
    """Draw sky and ground."""
    height, width = ids.shape
    at, colour = np.empty(4), np.empty(3)
    for row in range(height):
        drop = (row + 0.5 - height * HORIZON) / focal
        if drop < 0.004:
            share = min(1.0, -drop / 0.36) if drop < 0 else 0.0
            for column in range(width):
                for k in range(3):
                    colours[row, column, k] = look[HAZE_R + k] + share * (
                        look[SKY_R + k] - look[HAZE_R + k]
                    )
                ids[row, column], depths[row, column] = SKY_ID, np.inf
            continue
        depth = CAMERA_HEIGHT / drop
        haze = 1.0 - np.exp(-depth / 220.0)
        side, stretch = depth / focal, depth * depth / (CAMERA_HEIGHT * focal)
        footprint = np.sqrt(side * min(stretch, 12 * side))
        for column in range(width):
            left = (width / 2 - column - 0.5) / focal * depth
            x, y = camera_x + cos * depth - sin * left, camera_y + sin * depth + cos * left
            chart_at(grid, x0, y0, x, y, at)
            ids[row, column] = ground(x, y, footprint, at, facts, look, colour)
            depths[row, column] = depth
            for k in range(3):
                colours[row, column, k] = colour[k] + haze * (look[HAZE_R + k] - colour[k])


@kernel
def draw_shadow(
    camera_x: float,
    camera_y: float,
    cos: float,
    sin: float,
    focal: float,
    box: Array,
    colours: NDArray[np.float32],
    ids: Ids,
) -> None:
    """Darken the ground under a box that stands near it."""
    if box[B_LOW] > 0.5 or box[B_SHAPE] == WALL:
        return
    height, width = ids.shape
    dx, dy = box[B_X] - camera_x, box[B_Y] - camera_y
    depth, left = cos * dx + sin * dy, cos * dy - sin * dx
    reach = np.hypot(box[B_LENGTH], box[B_WIDTH]) + 0.2
    if depth < 1.0 or depth > 70.0:
        return
    near, far = max(depth - reach, 0.8), depth + reach
    top = int(max(height * HORIZON + focal * CAMERA_HEIGHT / far, 0.0))
    bottom = int(min(height * HORIZON + focal * CAMERA_HEIGHT / near + 1, height))
    first = width / 2 - focal * (left + reach) / (near if left + reach > 0 else far)
    last = width / 2 - focal * (left - reach) / (far if left - reach > 0 else near)
    c, s = np.cos(box[B_HEADING]), np.sin(box[B_HEADING])
    for row in range(top, bottom):
        drop = (row + 0.5 - height * HORIZON) / focal
        if drop < 0.004:
            continue
        ahead = CAMERA_HEIGHT / drop
        for column in range(int(max(first, 0.0)), int(min(last + 1, width))):
            if ids[row, column] == SKY_ID:
                continue
            beside = (width / 2 - column - 0.5) / focal * ahead
            px, py = cos * ahead - sin * beside - dx, sin * ahead + cos * beside - dy
            if (
                abs(c * px + s * py) < box[B_LENGTH] + 0.12
                and abs(c * py - s * px) < box[B_WIDTH] + 0.12
            ):
                for k in range(3):
                    colours[row, column, k] *= 0.55


@kernel
def draw_box(
    camera_x: float,
    camera_y: float,
    cos: float,
    sin: float,
    focal: float,
    box: Array,
    look: Array,
    colours: NDArray[np.float32],
    ids: Ids,
    depths: NDArray[np.float32],
) -> None:
    """Draw one box where it is nearer than what is there: a ray through every pixel around it."""
    height, width = ids.shape
    dx, dy = box[B_X] - camera_x, box[B_Y] - camera_y
    depth, left = cos * dx + sin * dy, cos * dy - sin * dx
    reach = np.hypot(box[B_LENGTH], box[B_WIDTH])
    if depth + reach < 0.5:
        return
    near, far = max(depth - reach, 0.4), depth + reach
    low, high = box[B_LOW] - CAMERA_HEIGHT, box[B_LOW] + box[B_HEIGHT] - CAMERA_HEIGHT
    first = width / 2 - focal * (left + reach) / (near if left + reach > 0 else far)
    last = width / 2 - focal * (left - reach) / (far if left - reach > 0 else near)
    top = height * HORIZON - focal * high / (near if high > 0 else far)
    bottom = height * HORIZON - focal * low / (near if low < 0 else far)
    if last < 0 or first > width or bottom < 0 or top > height:
        return
    c, s = np.cos(box[B_HEADING]), np.sin(box[B_HEADING])
    origin_a, origin_b = -(c * dx + s * dy), -(c * dy - s * dx)
    lights = np.empty(5)
    for face in range(5):
        sign = 1.0 if face in (0, 2) else -1.0
        if face == 4:
            facing = look[SUN_Z]
        elif face < 2:
            facing = sign * (c * look[SUN_X] + s * look[SUN_Y])
        else:
            facing = sign * (c * look[SUN_Y] - s * look[SUN_X])
        lights[face] = 0.72 + look[SUN_SHARE] * max(facing, 0.0)
    colour = np.empty(3)
    for row in range(int(max(top, 0.0)), int(min(bottom + 1, height))):
        climb = (height * HORIZON - row - 0.5) / focal
        for column in range(int(max(first, 0.0)), int(min(last + 1, width))):
            beside = (width / 2 - column - 0.5) / focal
            wx, wy = cos - sin * beside, sin + cos * beside
            ray_a, ray_b = c * wx + s * wy, c * wy - s * wx
            t, face = hit(
                origin_a, origin_b, ray_a, ray_b, climb, box[B_LENGTH], box[B_WIDTH], low, high
            )
            if t < 0.3 or t >= depths[row, column]:
                continue
            a, b = (origin_a + t * ray_a) / box[B_LENGTH], (origin_b + t * ray_b) / box[B_WIDTH]
            up = (t * climb - low) / box[B_HEIGHT]
            identity = shade_box(box, face, a, b, up, lights[face], colour)
            if identity < 0:
                continue
            if box[B_SHAPE] == CROWN:
                leaf = 1.0 + 0.16 * grain(int(a * 4 + 40), int(b * 4 + 40), int(up * 5))
                for k in range(3):
                    colour[k] *= leaf
            haze = 1.0 - np.exp(-t / 220.0)
            depths[row, column], ids[row, column] = t, identity
            for k in range(3):
                colours[row, column, k] = colour[k] + haze * (look[HAZE_R + k] - colour[k])


@kernel
def hit(
    origin_a: float,
    origin_b: float,
    ray_a: float,
    ray_b: float,
    climb: float,
    half_length: float,
    half_width: float,
    low: float,
    high: float,
) -> tuple[float, int]:
    """Return (depth, face) where a ray enters a box; -1 as depth where it does not."""
    enter, leave, face = -1e9, 1e9, 4
    for axis in range(3):
        if axis == 0:
            origin, ray, lower, upper = origin_a, ray_a, -half_length, half_length
        elif axis == 1:
            origin, ray, lower, upper = origin_b, ray_b, -half_width, half_width
        else:
            origin, ray, lower, upper = 0.0, climb, low, high
        if abs(ray) < 1e-9:
            if not lower <= origin <= upper:
                return -1.0, 0
            continue
        t0, t1 = (lower - origin) / ray, (upper - origin) / ray
        if t0 > t1:
            t0, t1 = t1, t0
        if t0 > enter:
            enter = t0
            if axis == 0:
                face = 1 if ray > 0 else 0
            elif axis == 1:
                face = 3 if ray > 0 else 2
            else:
                face = 4
        leave = min(leave, t1)
    if enter > leave or enter < 0.0:
        return -1.0, 0
    return enter, face
