"""What the three cameras see of a world.

All drawing is done by kernels without the interpreter lock: twelve frames of 196x112 take about
15 ms, so training draws them on the fly.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from autovla_rt.config import CAMERAS
from autovla_rt.demo.boxes import BOX_COLUMNS, MAX_BOXES, build_boxes
from autovla_rt.demo.camera import CAMERA_AHEAD, FIELD_OF_VIEW, YAWS, Ids, Pixels, View
from autovla_rt.demo.ground import draw_ground, grain
from autovla_rt.demo.jit import kernel
from autovla_rt.demo.look import GAIN, NOISE, look_of
from autovla_rt.demo.raycast import draw_box, draw_shadow
from autovla_rt.demo.road import Array, chart, chart_origin
from autovla_rt.demo.state import HEADING, X, Y
from autovla_rt.demo.world import World


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
