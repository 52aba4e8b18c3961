"""Boxes as a camera sees them: a ray through every pixel around each, with a depth buffer."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from autovla_rt.demo.boxes import (
    B_BLUE,
    B_EXTRA,
    B_GREEN,
    B_HEADING,
    B_HEIGHT,
    B_ID,
    B_LENGTH,
    B_LOW,
    B_RED,
    B_SHAPE,
    B_WIDTH,
    B_X,
    B_Y,
    CAR_BODY,
    CAR_CABIN,
    CONE_SHAPE,
    CROWN,
    LAMPS,
    PERSON,
    STRIPES,
    WALL,
)
from autovla_rt.demo.camera import CAMERA_HEIGHT, GREEN_ID, HORIZON, SKY_ID, Ids
from autovla_rt.demo.ground import grain
from autovla_rt.demo.jit import kernel
from autovla_rt.demo.look import HAZE_R, SUN_SHARE, SUN_X, SUN_Y, SUN_Z
from autovla_rt.demo.road import Array

LAMP_COLOURS = np.array([[60, 255, 110], [255, 190, 40], [255, 50, 40]], np.float64)
"""Of green, amber and red."""


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
