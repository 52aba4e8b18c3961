"""Pictures of a drive: what the cameras saw, the plan drawn into them, and the world from above."""

from __future__ import annotations

import io
import itertools
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from autovla_rt.demo import road, state
from autovla_rt.demo.boxes import CAR_COLOURS, SHIRTS
from autovla_rt.demo.camera import CAMERA_AHEAD, CAMERA_HEIGHT, FIELD_OF_VIEW, HORIZON, Pixels
from autovla_rt.demo.drive import Tick
from autovla_rt.demo.drivers import FRAME_HEIGHT, FRAME_WIDTH
from autovla_rt.demo.jit import kernel
from autovla_rt.demo.render import render
from autovla_rt.demo.road import Array
from autovla_rt.demo.state import (
    A_HEADING,
    A_X,
    A_Y,
    COLOUR,
    EGO_LENGTH,
    EGO_WIDTH,
    HEADING,
    KIND,
    LENGTH,
    SPEED,
    WIDTH,
    X,
    Y,
)
from autovla_rt.demo.world import World
from autovla_rt.kernels.contour import compose, inverse, transform

Colour = tuple[int, int, int]

CAMERA_ORDER = ("front_left", "front", "front_right")
BIRDS_EYE_WIDTH, CAPTION_HEIGHT = 232, 56
BACKGROUND: Colour = (24, 27, 32)
INK: Colour = (236, 238, 240)
FAINT: Colour = (150, 156, 164)
FAST: Colour = (86, 180, 233)
SLOW: Colour = (230, 159, 0)
"""Colours of plans by mode, apart for colour-blind eyes too (Okabe and Ito)."""

PIXELS_PER_METRE = 3.2
EGO_FROM_BOTTOM = 42
CONE_COLOUR: Colour = (240, 110, 30)
GRASS: Colour = (44, 58, 44)
ASPHALT: Colour = (70, 72, 78)
MIDDLE_LINE: Colour = (200, 170, 60)


def tick_picture(tick: Tick) -> Image.Image:
    """Return one replanning as a picture: three cameras, the bird's-eye view, a caption."""
    views = tick.decision.views or render(tick.world, FRAME_WIDTH, FRAME_HEIGHT)
    width = 3 * FRAME_WIDTH + BIRDS_EYE_WIDTH
    picture = Image.new("RGB", (width, FRAME_HEIGHT + CAPTION_HEIGHT), BACKGROUND)
    for index, camera in enumerate(CAMERA_ORDER):
        frame = Image.fromarray(views[camera].pixels)
        if camera == "front":
            _overlay_plan(frame, tick)
        picture.paste(frame, (index * FRAME_WIDTH, 0))
    above = birds_eye(tick, BIRDS_EYE_WIDTH, FRAME_HEIGHT + CAPTION_HEIGHT)
    picture.paste(above, (3 * FRAME_WIDTH, 0))
    _caption(picture, tick)
    return picture


def contact_sheet(pictures: Sequence[Image.Image], title: str) -> Image.Image:
    """Return pictures under each other, with a title line."""
    width, height = pictures[0].size
    head = 34
    sheet = Image.new("RGB", (width, head + (height + 4) * len(pictures)), BACKGROUND)
    ImageDraw.Draw(sheet).text((12, 7), title, font=_font(18), fill=INK)
    for index, picture in enumerate(pictures):
        sheet.paste(picture, (0, head + index * (height + 4)))
    return sheet


def film(pictures: Sequence[Image.Image], seconds_per_picture: float) -> bytes:
    """Return an animated WebP of pictures of one size."""
    file = io.BytesIO()
    pictures[0].save(
        file,
        "WEBP",
        save_all=True,
        append_images=list(pictures[1:]),
        duration=round(seconds_per_picture * 1e3),
        quality=70,
        method=2,
        loop=0,
    )
    return file.getvalue()


def birds_eye(tick: Tick, width: int, height: int) -> Image.Image:
    """Return the world from above, the ego's heading up: road, agents, plan."""
    world = tick.world
    pixels = _ground_from_above(world, width, height)
    image = Image.fromarray(pixels)
    draw = ImageDraw.Draw(image)

    def place(points: Array) -> list[tuple[float, float]]:
        return [_above(x, y, width, height) for x, y in points]

    origin = inverse(world.ego[:3])
    for agent in world.agents:
        pose = compose(origin, np.array([agent[A_X], agent[A_Y], agent[A_HEADING]]))
        half = (max(agent[LENGTH], 0.8) / 2, max(agent[WIDTH], 0.8) / 2)
        draw.polygon(place(_box(pose, *half)), fill=_agent_colour(agent))
    ego_box = _box(np.zeros(3), EGO_LENGTH / 2, EGO_WIDTH / 2)
    draw.polygon(place(ego_box), fill=INK)
    path = np.concatenate([[[0.0, 0.0]], tick.decision.trajectory[:, :2]])
    draw.line(place(path), fill=_plan_colour(tick), width=2)
    for x, y in place(path[1:]):
        draw.ellipse((x - 2, y - 2, x + 2, y + 2), fill=_plan_colour(tick))
    return image


def _ground_from_above(world: World, width: int, height: int) -> Pixels:
    """Return asphalt, the main road's middle line and the rest around the ego [h, w, 3]."""
    layout, ego = world.layout, world.ego
    grid = road.chart(layout.main, layout.cross, ego[X], ego[Y])
    colours = np.empty((height, width, 3), np.uint8)
    _paint_from_above(
        ego, grid, road.chart_origin(ego[X]), road.chart_origin(ego[Y]), layout.numbers, colours
    )
    return colours


@kernel
def _paint_from_above(
    ego: Array, grid: Array, x0: float, y0: float, numbers: Array, colours: Pixels
) -> None:
    height, width = colours.shape[:2]
    at = np.empty(4)
    cos, sin = np.cos(ego[HEADING]), np.sin(ego[HEADING])
    for row in range(height):
        ahead = (height - EGO_FROM_BOTTOM - row) / PIXELS_PER_METRE
        for column in range(width):
            left = (width / 2 - column) / PIXELS_PER_METRE
            x, y = ego[X] + cos * ahead - sin * left, ego[Y] + sin * ahead + cos * left
            road.chart_at(grid, x0, y0, x, y, at)
            colour = GRASS
            if road.on_road(at[0], at[1], at[3], numbers, 0.0):
                middle = abs(at[1]) < 0.25 and abs(at[3]) > numbers[road.CROSS_HALF]
                colour = MIDDLE_LINE if middle else ASPHALT
            for k in range(3):
                colours[row, column, k] = colour[k]


def _above(x: float, y: float, width: int, height: int) -> tuple[float, float]:
    return width / 2 - y * PIXELS_PER_METRE, height - EGO_FROM_BOTTOM - x * PIXELS_PER_METRE


def _box(pose: Array, half_length: float, half_width: float) -> Array:
    corners = np.array([[1, 1], [1, -1], [-1, -1], [-1, 1]]) * (half_length, half_width)
    return transform(pose, corners)


def _agent_colour(agent: Array) -> Colour:
    kind = int(agent[KIND])
    if kind >= state.CONE:
        return CONE_COLOUR
    table = SHIRTS if kind == state.PEDESTRIAN else CAR_COLOURS
    red, green, blue = (int(level) for level in table[int(agent[COLOUR])])
    return red, green, blue


def _plan_colour(tick: Tick) -> Colour:
    plan = tick.decision.plan
    return SLOW if plan is not None and plan.mode == "slow" else FAST


def _overlay_plan(frame: Image.Image, tick: Tick) -> None:
    """Draw the plan on the ground that the front camera sees, as wide as the car."""
    draw = ImageDraw.Draw(frame, "RGBA")
    poses = np.concatenate([np.zeros((1, 3)), tick.decision.trajectory])
    colour = _plan_colour(tick)
    for start, end in itertools.pairwise(poses):
        sides = np.array([[0, 0.9], [0, -0.9]])
        points = np.concatenate([transform(start, sides), transform(end, sides)[::-1]])
        pixels = _on_picture(points)
        if pixels is not None:
            draw.polygon(pixels, fill=(*colour, 92))
    for pose in poses[1:]:
        pixels = _on_picture(transform(pose, np.array([[0, 0.9], [0, -0.9]])))
        if pixels is not None:
            draw.line(pixels, fill=(*colour, 255), width=2)


def _on_picture(points: Array) -> list[tuple[float, float]] | None:
    """Project ground points [n, 2] of the ego frame; None where one is not before the camera."""
    depth = points[:, 0] - CAMERA_AHEAD
    if (depth < 1.5).any():
        return None
    focal = FRAME_WIDTH / 2 / np.tan(FIELD_OF_VIEW / 2)
    columns = FRAME_WIDTH / 2 - focal * points[:, 1] / depth
    rows = FRAME_HEIGHT * HORIZON + focal * CAMERA_HEIGHT / depth
    return list(zip(columns.tolist(), rows.tolist(), strict=True))


def _caption(picture: Image.Image, tick: Tick) -> None:
    draw, top = ImageDraw.Draw(picture), FRAME_HEIGHT + 6
    world, plan = tick.world, tick.decision.plan
    state = f"{tick.time:4.1f} s   {world.ego[SPEED]:4.1f} m/s   {world.instruction}"
    draw.text((12, top), state, font=_font(15), fill=INK)
    latency = f"{tick.decision.milliseconds:.0f} ms planned, applied after {tick.latency_ms:.0f} ms"
    draw.text((12, top + 24), latency, font=_font(13), fill=FAINT)
    if plan is None:
        return
    p_slow = "" if plan.p_slow is None else f"   p(slow) {plan.p_slow:.2f}"
    draw.text((300, top), f"{plan.mode}{p_slow}", font=_font(15), fill=_plan_colour(tick))
    lines = plan.reasoning.split("\n")
    for index, pair in enumerate((lines[:2], lines[2:4])):
        draw.text((480, top + 22 * index), "   ".join(pair), font=_font(13), fill=INK)


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)
