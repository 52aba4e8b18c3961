"""Draw the demo scene: twelve frames of a road from three cameras, with its scene.json.

Run `python demo/road_scene.py OUT`; the tracked copy is calib_data/demo. The world is the ego frame
of the last frame: x forward, y left, z up, metres. The car follows a gentle left bend at the speed
of the traffic ahead, which is slower than itself.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

Array = NDArray[np.float64]
Colour = tuple[int, int, int]

WIDTH, HEIGHT = 448, 252
SUPERSAMPLING = 2
JPEG_QUALITY = 85
YAWS = {"front": 0.0, "front_left": np.radians(55), "front_right": np.radians(-55)}
CAMERA_HEIGHT = 1.5
FOCAL = WIDTH / 2 / np.tan(np.radians(70) / 2)
HORIZON = 0.44
"""Height of the horizon in the picture, 0 = top edge."""
NEAR = 0.4

TIMES = (-1.5, -1.0, -0.5, 0.0)
SPEED, ACCELERATION, LEAD_SPEED, LEAD_GAP = 8.0, -0.6, 5.0, 18.0
CURVATURE = 1 / 250
LANE = 3.5

SKY_TOP, SKY_LOW, HAZE = np.array([98, 148, 205]), np.array([206, 220, 230]), 260.0
ASPHALT, GRASS, PAVEMENT, PAINT = (88, 88, 92), (96, 122, 68), (150, 146, 138), (226, 226, 220)
SUN = np.array([0.45, 0.35, 0.82])


@dataclass(frozen=True)
class Box:
    """An upright cuboid: centre (x, y, z), heading, size (length, width, height), colour.

    Of a panel (a lamp, a window) only the front face is drawn.
    """

    centre: tuple[float, float, float]
    heading: float
    size: tuple[float, float, float]
    colour: Colour
    panel: bool = False


def along(distance: float, left: float = 0.0) -> tuple[float, float, float]:
    """Return the pose (x, y, heading) `distance` m along the lane, `left` m beside its middle."""
    heading = CURVATURE * distance
    x = np.sin(heading) / CURVATURE - left * np.sin(heading)
    y = (1 - np.cos(heading)) / CURVATURE + left * np.cos(heading)
    return float(x), float(y), heading


def ego_distance(time: float) -> float:
    """Return the distance driven since the last frame; the car slows to the speed of the lead."""
    slowing = min(time, (LEAD_SPEED - SPEED) / ACCELERATION)
    return SPEED * slowing + ACCELERATION / 2 * slowing**2 + LEAD_SPEED * (time - slowing)


def beside(
    pose: tuple[float, float, float], ahead: float, left: float, up: float
) -> tuple[float, float, float]:
    """Return the point (x, y, z) that lies so many metres ahead, left of and above a pose."""
    x, y, heading = pose
    cos, sin = float(np.cos(heading)), float(np.sin(heading))
    return x + ahead * cos - left * sin, y + ahead * sin + left * cos, up


def car(distance: float, left: float, colour: Colour, *, oncoming: bool = False) -> list[Box]:
    """Return the boxes of a car in drawing order: wheels, body, cabin, roof, lamps."""
    x, y, heading = along(distance, left)
    pose = (x, y, heading + np.pi * oncoming)

    def part(
        ahead: float, left: float, up: float, size: tuple[float, float, float], colour: Colour
    ) -> Box:
        return Box(beside(pose, ahead, left, up), pose[2], size, colour)

    def lamp(end: int, left: float, up: float, colour: Colour) -> Box:
        facing = pose[2] + (0.0 if end > 0 else np.pi)
        return Box(beside(pose, end * 2.24, left, up), facing, (0.06, 0.36, 0.17), colour, True)

    wheel = (0.66, 0.22, 0.64)
    return [
        *(part(a, b, 0.32, wheel, (24, 24, 26)) for a in (-1.4, 1.4) for b in (-0.8, 0.8)),
        part(0, 0, 0.66, (4.5, 1.8, 0.62), colour),
        part(-0.25, 0, 1.2, (2.4, 1.6, 0.5), (46, 54, 64)),
        part(-0.3, 0, 1.47, (2.0, 1.5, 0.06), colour),
        *(lamp(-1, b, 0.8, (214, 30, 26)) for b in (-0.68, 0.68)),
        *(lamp(1, b, 0.7, (250, 248, 225)) for b in (-0.68, 0.68)),
    ]


def building(rng: np.random.Generator, distance: float, left: float) -> list[Box]:
    """Return a house with rows of windows facing the road."""
    pose = along(distance, left)
    height, length = float(rng.uniform(6, 12)), float(rng.uniform(11, 15))
    wall = shade((196, 182, 164), float(rng.uniform(0.7, 1.1)))
    facing = -1 if left > 0 else 1
    return [
        Box(beside(pose, 0, 0, height / 2), pose[2], (length, 9.0, height), wall),
        *(
            Box(
                beside(pose, float(ahead), facing * 4.5, float(up)),
                pose[2] + facing * np.pi / 2,
                (0.1, 1.2, 1.5),
                (70, 84, 98),
                panel=True,
            )
            for up in np.arange(1.7, height - 1, 2.8)
            for ahead in np.arange(-length / 2 + 1.8, length / 2 - 1, 2.6)
        ),
    ]


def shade(colour: Colour, factor: float) -> Colour:
    """Return a colour scaled in brightness."""
    red, green, blue = (min(255, int(level * factor)) for level in colour)
    return red, green, blue


def tree(rng: np.random.Generator, distance: float, left: float) -> list[Box]:
    """Return a trunk and a crown of a few leafy boxes."""
    x, y, heading = along(distance, left)
    boxes = [Box((x, y, 1.2), heading, (0.3, 0.3, 2.4), (84, 66, 50))]
    for up, width in ((2.8, 2.6), (3.6, 3.0), (4.5, 2.2), (5.1, 1.2)):
        leaves = shade((84, 122, 62), float(rng.uniform(0.8, 1.15)))
        turn = heading + float(rng.uniform(0, 1.5))
        boxes.append(Box((x, y, up), turn, (width, width, 0.9), leaves))
    return boxes


def world(time: float, seed: int) -> list[list[Box]]:
    """Return the objects at `time` seconds, each as boxes in drawing order."""
    rng = np.random.default_rng(seed)
    objects = [
        car(LEAD_GAP + LEAD_SPEED * time, 0.0, (186, 44, 40)),
        car(34 - 9.0 * time, LANE, (208, 210, 214), oncoming=True),
        car(9.0, -3.9, (52, 84, 140)),
        car(31.0, -3.9, (92, 96, 90)),
    ]
    for distance in np.arange(-40, 180, 17.0):
        objects.append(building(rng, distance + 4, 20.0))
        objects.append(building(rng, distance, -17.5))
        objects.append(tree(rng, distance + 8, 9.2))
        objects.append(tree(rng, distance + 12, -7.2))
    return objects


class View:
    """One camera at one moment: world points to pixels, pixels to the road surface."""

    def __init__(self, time: float, yaw: float) -> None:
        x, y, heading = along(ego_distance(time))
        self.position = np.array([x, y, CAMERA_HEIGHT])
        cos, sin = np.cos(heading + yaw), np.sin(heading + yaw)
        self.forward, self.left = np.array([cos, sin, 0.0]), np.array([-sin, cos, 0.0])
        self.scale = SUPERSAMPLING
        self.size = (WIDTH * self.scale, HEIGHT * self.scale)

    def camera_points(self, points: Array) -> Array:
        """Return (depth, left, up) of world points [n, 3]."""
        seen = points - self.position
        return np.stack([seen @ self.forward, seen @ self.left, seen[:, 2]], axis=1)

    def pixels(self, seen: Array) -> list[tuple[float, float]]:
        """Return the pixels of camera points [n, 3] in front of the camera."""
        focal = FOCAL * self.scale
        u = self.size[0] / 2 - focal * seen[:, 1] / seen[:, 0]
        v = self.size[1] * HORIZON - focal * seen[:, 2] / seen[:, 0]
        return list(zip(u.tolist(), v.tolist(), strict=True))

    def ground(self) -> tuple[Array, Array]:
        """Return the ground (x, y) that each pixel shows [h, w, 2], and its depth [h, w]."""
        width, height = self.size
        u = (width / 2 - np.arange(width) - 0.5) / (FOCAL * self.scale)
        v = (np.arange(height) + 0.5 - height * HORIZON) / (FOCAL * self.scale)
        depth = np.where(v > 0, CAMERA_HEIGHT / np.maximum(v, 1e-4), np.inf)
        depth = np.repeat(depth[:, None], width, axis=1)
        near = np.minimum(depth, 1e4)[..., None]
        points = self.position[:2] + near * (self.forward[:2] + u[None, :, None] * self.left[:2])
        return points, depth


def paint_ground(view: View, grain: Array) -> NDArray[np.uint8]:
    """Return the picture [h, w, 3] of sky, grass, pavement, road and its markings."""
    points, depth = view.ground()
    # Lane coordinates on the circle that the lane follows.
    radius = 1 / CURVATURE
    inward = np.stack([points[..., 0], radius - points[..., 1]], axis=-1)
    left = radius - np.hypot(inward[..., 0], inward[..., 1])
    distance = radius * np.arctan2(inward[..., 0], inward[..., 1])

    colour = np.empty((*depth.shape, 3))
    colour[:] = GRASS
    road_side = left - LANE / 2
    colour[np.abs(road_side) < 8.2] = PAVEMENT
    colour[np.abs(road_side) < 6.6] = ASPHALT
    dashed = (np.abs(road_side) < 0.09) & (distance % 9 < 3.5)
    solid = np.abs(np.abs(road_side) - LANE) < 0.09
    colour[dashed | solid] = PAINT
    rows, columns = (np.floor(points * 9).astype(int) % len(grain)).transpose(2, 0, 1)
    colour *= 1 + grain[rows, columns][..., None] / (1 + depth[..., None] / 14)
    haze = (1 - np.exp(-depth / HAZE))[..., None]
    ground = colour + (SKY_LOW - colour) * haze
    height = np.linspace(0, 1 / HORIZON, depth.shape[0]).clip(0, 1)[:, None, None]
    sky = SKY_TOP + (SKY_LOW - SKY_TOP) * height
    picture: Array = np.where(np.isinf(depth)[..., None], sky, ground)
    return picture.clip(0, 255).astype(np.uint8)


def faces(box: Box) -> Iterator[tuple[Array, Array]]:
    """Yield (corners [4, 3], outward normal [3]) of the faces that a driver can see."""
    length, width, height = np.array(box.size) / 2
    cos, sin = np.cos(box.heading), np.sin(box.heading)
    axes = np.array([[cos, sin, 0], [-sin, cos, 0], [0, 0, 1]]) * [[length], [width], [height]]
    for axis, sign in ((0, 1),) if box.panel else ((0, 1), (0, -1), (1, 1), (1, -1), (2, 1)):
        a, b = (axes[i] for i in range(3) if i != axis)
        middle = np.array(box.centre) + sign * axes[axis]
        yield (
            np.array([middle - a - b, middle + a - b, middle + a + b, middle - a + b]),
            (sign * axes[axis] / np.linalg.norm(axes[axis])),
        )


def clip_near(seen: Array) -> Array:
    """Return the part of a polygon of camera points [n, 3] beyond the near plane."""
    kept: list[Array] = []
    for start, end in zip(seen, np.roll(seen, -1, axis=0), strict=True):
        if start[0] >= NEAR:
            kept.append(start)
        if (start[0] >= NEAR) != (end[0] >= NEAR):
            kept.append(start + (NEAR - start[0]) / (end[0] - start[0]) * (end - start))
    return np.array(kept).reshape(-1, 3)


def draw_box(draw: ImageDraw.ImageDraw, view: View, box: Box) -> None:
    """Draw the faces of a box that look at the camera, shaded by the sun and by haze."""
    for corners, normal in faces(box):
        if (view.position - corners[0]) @ normal <= 0:
            continue
        seen = clip_near(view.camera_points(corners))
        if len(seen) < 3:
            continue
        light = 0.62 + 0.45 * max(0.0, float(normal @ SUN))
        haze = 1 - np.exp(-float(seen[:, 0].mean()) / HAZE)
        colour = np.array(box.colour) * light
        colour += (SKY_LOW - colour) * haze
        draw.polygon(view.pixels(seen), fill=tuple(int(v) for v in colour.clip(0, 255)))


def draw_shadow(draw: ImageDraw.ImageDraw, view: View, boxes: list[Box]) -> None:
    """Darken the ground under an object, as wide as its widest box near the ground."""
    base = max((b for b in boxes if b.centre[2] < 1), key=lambda b: b.size[0], default=None)
    if base is None:
        return
    length, width, _ = base.size
    ground = (*base.centre[:2], 0.0)
    flat = Box(ground, base.heading, (length + 0.3, width + 0.3, 0.02), (38, 38, 42))
    draw_box(draw, view, flat)


def draw_frame(time: float, yaw: float, seed: int) -> Image.Image:
    """Return the picture of one camera at `time` seconds."""
    view = View(time, yaw)
    grain = np.random.default_rng(seed).normal(0, 0.07, (512, 512))
    image = Image.fromarray(paint_ground(view, grain))
    draw = ImageDraw.Draw(image)

    def distance(boxes: list[Box]) -> float:
        return float(np.hypot(*(np.array(boxes[-1].centre) - view.position)[:2]))

    for boxes in sorted(world(time, seed), key=distance, reverse=True):
        draw_shadow(draw, view, boxes)
        for box in boxes:
            draw_box(draw, view, box)
    return image.resize((WIDTH, HEIGHT), Image.Resampling.LANCZOS)


def scene() -> dict[str, object]:
    """Return scene.json: AutoVLA's keys, paths relative to the scene's folder."""
    poses = [along(ego_distance(step / 2)) for step in range(1, 11)]
    return {
        "token": "road-scene",
        "dataset_name": "drawn",
        "instruction": "keep forward",
        "velocity": SPEED,
        "acceleration": abs(ACCELERATION),
        "gt_trajectory": [[round(value, 4) for value in pose] for pose in poses],
        **{f"{camera}_camera_paths": [f"{camera}/{i}.jpg" for i in range(4)] for camera in YAWS},
    }


def write_scene(folder: Path, seed: int) -> None:
    """Write the twelve frames and scene.json under `folder`."""
    for camera, yaw in YAWS.items():
        (folder / camera).mkdir(parents=True, exist_ok=True)
        for index, time in enumerate(TIMES):
            frame = draw_frame(time, yaw, seed)
            frame.save(folder / camera / f"{index}.jpg", quality=JPEG_QUALITY)
    (folder / "scene.json").write_text(json.dumps(scene(), indent=2) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Draw the demo scene.")
    parser.add_argument("out", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    write_scene(arguments.out, arguments.seed)
