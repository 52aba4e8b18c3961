"""Sky and ground as a camera sees them: asphalt, markings, pavement, grass.

Markings are smoothed by the size of a pixel's footprint on the ground, so that a small frame looks
like a large one scaled down.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from autovla_rt.demo.camera import (
    ASPHALT_ID,
    CAMERA_HEIGHT,
    GRASS_ID,
    HORIZON,
    PAINT_ID,
    SKY_ID,
    Ids,
)
from autovla_rt.demo.jit import kernel
from autovla_rt.demo.look import ASPHALT, GRASS_G, HAZE_R, SKY_R
from autovla_rt.demo.road import (
    CROSS_CENTRE,
    CROSS_HALF,
    CROSSWALK_FAR,
    CROSSWALK_NEAR,
    JUNCTION,
    LANE,
    MAIN_HALF,
    MAIN_LANES,
    STOP_LINE,
    ZEBRA,
    Array,
    chart_at,
    on_road,
)


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
