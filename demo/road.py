"""Roads of the world: middle lines, the ego's route along them, what lies where on the ground.

World frame: metres, x and y in the plane, headings counter-clockwise in radians. A path is a line
sampled every `STEP` metres, [n, 4] of (x, y, heading, curvature). Lateral offsets are positive to
the left. Traffic keeps right.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from autovla_rt.demo.jit import kernel

Array = NDArray[np.float64]

STEP = 0.5
LANE = 3.5
CORNER = 6.0
"""Radius of the kerb at the corners of a junction, m."""
CROSSWALK_NEAR, CROSSWALK_FAR, STOP_LINE = 1.5, 4.5, 5.6
"""Distances from the edge of the crossing road, m."""

MAIN_LENGTH, ARM_LENGTH = 520.0, 260.0

# Numbers of a layout that kernels read.
MAIN_HALF, CROSS_HALF, JUNCTION, ZEBRA, MAIN_LANES, CROSS_CENTRE = range(6)
NO_PLACE = -1e6
"""Position of a junction or zebra crossing that does not exist."""


@dataclass(frozen=True)
class Layout:
    """One road network: a main road, a road that crosses it, and the ego's route.

    Attributes:
        main: Middle line of the main road, in the ego's direction.
        cross: Middle line of the crossing road, from right to left.
        route: Middle of the lanes that the ego is to follow.
        numbers: [6] half widths of both roads (m), position of the junction along `main`, position
            of a zebra crossing along `main` (`NO_PLACE` without), lanes of the main road in each
            direction, position of the junction along `cross`.
        junction_on_route: Position along `route` where it enters the junction's middle.
        stop_on_route: Position of the stop line along `route`.
        turn: -1 right, 0 straight on, 1 left.
        lane: The ego's lane on the main road, 0 next to the middle line.
    """

    main: Array
    cross: Array
    route: Array
    numbers: Array
    junction_on_route: float
    stop_on_route: float
    turn: int
    lane: int

    @property
    def has_junction(self) -> bool:
        """Whether a road crosses."""
        return bool(self.numbers[JUNCTION] > NO_PLACE)


def lane_offset(lane: int) -> float:
    """Return the lateral offset of a lane's middle from the middle line, m."""
    return -(lane + 0.5) * LANE


def winding(
    rng: np.random.Generator, length: float, straight: tuple[float, float] | None = None
) -> Array:
    """Return curvatures [n] of a gently bending road of `length` m, straight between two places."""
    count = int(length / STEP)
    curvature = np.zeros(count)
    place, heading = 0.0, 0.0
    while place < length:
        piece = float(rng.uniform(30, 90))
        bend = 0.0
        if rng.random() < 0.6:
            bend = float(rng.choice([-1, 1])) / float(rng.uniform(45, 220))
            if abs(heading + bend * piece) > 1.0:
                bend = -np.sign(heading) * abs(bend)
        heading += bend * piece
        curvature[int(place / STEP) : int((place + piece) / STEP)] = bend
        place += piece
    if straight is not None:
        curvature[max(0, int(straight[0] / STEP)) : int(straight[1] / STEP)] = 0.0
    ramp = np.hanning(33)
    smooth: Array = np.convolve(np.pad(curvature, 16, mode="edge"), ramp / ramp.sum(), "valid")
    return smooth


def integrate(curvature: Array, start: tuple[float, float, float] = (0.0, 0.0, 0.0)) -> Array:
    """Return the path [n, 4] that begins at a pose and bends by `curvature` [n]."""
    turned = np.concatenate([[0.0], np.cumsum((curvature[1:] + curvature[:-1]) / 2 * STEP)])
    heading = start[2] + turned
    middle = (heading[1:] + heading[:-1]) / 2
    x = start[0] + np.concatenate([[0.0], np.cumsum(np.cos(middle) * STEP)])
    y = start[1] + np.concatenate([[0.0], np.cumsum(np.sin(middle) * STEP)])
    return np.stack([x, y, heading, curvature], axis=1)


def beside(path: Array, offset: float) -> Array:
    """Return points [n, 2] that lie `offset` m to the left of a path."""
    normal = np.stack([-np.sin(path[:, 2]), np.cos(path[:, 2])], axis=1)
    points: Array = path[:, :2] + offset * normal
    return points


def through(points: Array) -> Array:
    """Return the path that runs through a line of points [m, 2] at most `STEP` m apart."""
    lengths = np.hypot(*np.diff(points, axis=0).T)
    keep = np.concatenate([[True], lengths > 1e-6])
    points = points[keep]
    along = np.concatenate([[0.0], np.cumsum(np.hypot(*np.diff(points, axis=0).T))])
    places = np.arange(0.0, along[-1], STEP)
    line = np.stack([np.interp(places, along, points[:, i]) for i in (0, 1)], axis=1)
    tangent = np.gradient(line, axis=0)
    heading = np.unwrap(np.arctan2(tangent[:, 1], tangent[:, 0]))
    curvature = np.gradient(heading, STEP)
    ramp = np.ones(5) / 5
    curvature = np.convolve(np.pad(curvature, 2, mode="edge"), ramp, "valid")
    return np.column_stack([line, heading, curvature])


def crossing_road(rng: np.random.Generator, main: Array, junction: float) -> tuple[Array, float]:
    """Return a road square to `main` at `junction`, and the position of the junction along it."""
    x, y, heading, _ = main[int(junction / STEP)]
    bends = winding(rng, ARM_LENGTH, (0.0, 40.0)), winding(rng, ARM_LENGTH, (0.0, 40.0))
    left = integrate(bends[0], (x, y, heading + np.pi / 2))
    right = integrate(bends[1], (x, y, heading - np.pi / 2))
    back = right[:0:-1].copy()
    back[:, 2] += np.pi
    back[:, 3] *= -1
    return np.concatenate([back, left]), len(back) * STEP


def build_layout(
    rng: np.random.Generator, *, junction: float | None, zebra: float | None, turn: int, lanes: int
) -> Layout:
    """Draw a road network; `junction` and `zebra` are positions along the main road in metres."""
    keep_straight = None if junction is None else (junction - 45.0, junction + 45.0)
    main = integrate(winding(rng, MAIN_LENGTH, keep_straight))
    lane = {1: 0, -1: lanes - 1}.get(turn, int(rng.integers(lanes)))
    numbers = np.array([lanes * LANE, LANE, NO_PLACE, zebra or NO_PLACE, lanes, 0.0])
    if junction is None:
        far = np.column_stack([np.full(8, 1e5), np.full(8, 1e5), np.zeros(8), np.zeros(8)])
        route = through(beside(main, lane_offset(lane)))
        return Layout(main, far, route, numbers, NO_PLACE, NO_PLACE, 0, lane)
    cross, centre = crossing_road(rng, main, junction)
    numbers[JUNCTION], numbers[CROSS_CENTRE] = junction, centre
    route, entry = _route(main, cross, junction, centre, lane, turn)
    stop = entry - LANE - STOP_LINE
    return Layout(main, cross, route, numbers, entry, stop, turn, lane)


def _route(
    main: Array, cross: Array, junction: float, centre: float, lane: int, turn: int
) -> tuple[Array, float]:
    """Return the ego's route and where it passes the junction's middle (before a turn bends it)."""
    offset = lane_offset(lane)
    approach = beside(main, offset)
    at = int(junction / STEP)
    if turn == 0:
        route = through(approach)
        return route, _position_near(route, approach[at])
    # Local frame of the junction: x along the main road, y to the left.
    origin, heading = main[at, :2], main[at, 2]
    radius = LANE + 6.5 if turn > 0 else CORNER + 1.5
    exit_x = turn * LANE / 2
    begin_x, end_y = exit_x - radius, offset + turn * radius
    angle = np.linspace(0, np.pi / 2, 60)
    local = np.stack(
        [begin_x + radius * np.sin(angle), offset + turn * radius * (1 - np.cos(angle))], axis=1
    )
    cos, sin = np.cos(heading), np.sin(heading)
    arc = origin + local @ np.array([[cos, sin], [-sin, cos]])
    before = approach[: at + int(np.floor(begin_x / STEP))]
    start = round((centre + end_y) / STEP) + turn
    after = beside(cross[start::turn], -turn * LANE / 2)
    route = through(np.concatenate([before, arc, after]))
    return route, _position_near(route, before[-1]) - begin_x


def _position_near(path: Array, point: Array) -> float:
    return float(np.argmin(np.hypot(*(path[:, :2] - point).T))) * STEP


@kernel
def nearest(path: Array, x: float, y: float, index: int, reach: int) -> int:
    """Return the sample of a path that is nearest to a point, within `reach` samples of `index`."""
    low, high = max(0, index - reach), min(len(path), index + reach + 1)
    best, found = 1e18, low
    for i in range(low, high):
        distance = (path[i, 0] - x) ** 2 + (path[i, 1] - y) ** 2
        if distance < best:
            best, found = distance, i
    return found


@kernel
def project(path: Array, x: float, y: float, index: int) -> tuple[float, float]:
    """Return (position along, offset to the left) of a point whose nearest sample is `index`."""
    cos, sin = np.cos(path[index, 2]), np.sin(path[index, 2])
    dx, dy = x - path[index, 0], y - path[index, 1]
    return index * STEP + cos * dx + sin * dy, cos * dy - sin * dx


@kernel
def place(path: Array, along: float, offset: float) -> tuple[float, float, float]:
    """Return the pose (x, y, heading) at a position and offset of a path, interpolated."""
    at = min(max(along / STEP, 0.0), len(path) - 1.001)
    i = int(at)
    f = at - i
    x = path[i, 0] + f * (path[i + 1, 0] - path[i, 0])
    y = path[i, 1] + f * (path[i + 1, 1] - path[i, 1])
    heading = path[i, 2] + f * (path[i + 1, 2] - path[i, 2])
    return x - offset * np.sin(heading), y + offset * np.cos(heading), heading


@kernel
def on_road(
    main_along: float, main_left: float, cross_left: float, numbers: Array, margin: float
) -> bool:
    """Whether road coordinates lie on asphalt (with kerb corners) or within `margin` m of it."""
    across = abs(main_left)
    if across <= numbers[MAIN_HALF] + margin or abs(cross_left) <= numbers[CROSS_HALF] + margin:
        return True
    # Corner of the junction: inside the square of the kerb's radius, outside its circle.
    a, b = across - numbers[MAIN_HALF], abs(cross_left) - numbers[CROSS_HALF]
    if a < CORNER and b < CORNER and abs(main_along - numbers[JUNCTION]) < 40.0:
        return bool((CORNER - a) ** 2 + (CORNER - b) ** 2 >= (CORNER - margin) ** 2)
    return False


CHART_CELL, CHART_SIDE, CHART_FAR = 2.0, 104, 60.0


@kernel
def chart_origin(middle: float) -> float:
    """Return the first cell's coordinate of a chart around `middle`."""
    return float(np.floor(middle / CHART_CELL) * CHART_CELL - CHART_CELL * (CHART_SIDE // 2))


@kernel
def chart(main: Array, cross: Array, x: float, y: float) -> Array:
    """Return road coordinates on a grid [CHART_SIDE, CHART_SIDE, 4] around (x, y).

    A cell holds (along, left) of the main road and of the crossing one, `CHART_FAR` as left where
    the road is farther away than that. Bilinear interpolation between cells of 2 m is accurate to
    a centimetre for these bends.
    """
    grid = np.empty((CHART_SIDE, CHART_SIDE, 4))
    x0, y0 = chart_origin(x), chart_origin(y)
    for road in range(2):
        path = main if road == 0 else cross
        row_index = 0
        for row in range(CHART_SIDE):
            py = y0 + CHART_CELL * row
            index = row_index
            for column in range(CHART_SIDE):
                px = x0 + CHART_CELL * column
                if column == 0:
                    # A coarse search over the whole path, then a fine one.
                    best = 1e18
                    for i in range(0, len(path), 12):
                        distance = (path[i, 0] - px) ** 2 + (path[i, 1] - py) ** 2
                        if distance < best:
                            best, index = distance, i
                index = nearest(path, px, py, index, 12)
                along, left = project(path, px, py, index)
                off_end = (index == 0 or index == len(path) - 1) and (
                    abs(along - index * STEP) > 4.0
                )
                if off_end or abs(left) > CHART_FAR:
                    left = CHART_FAR if left > 0 else -CHART_FAR
                grid[row, column, 2 * road] = along
                grid[row, column, 2 * road + 1] = left
    return grid


@kernel
def chart_at(grid: Array, x0: float, y0: float, x: float, y: float, out: Array) -> None:
    """Interpolate a chart whose first cell is at (x0, y0); writes 4 values to `out`."""
    c, r = (x - x0) / CHART_CELL, (y - y0) / CHART_CELL
    if not (0.0 <= c < CHART_SIDE - 1.1 and 0.0 <= r < CHART_SIDE - 1.1):
        out[0], out[1], out[2], out[3] = 0.0, CHART_FAR, 0.0, CHART_FAR
        return
    i, j = int(r), int(c)
    f, g = r - i, c - j
    for k in range(4):
        low = grid[i, j, k] + g * (grid[i, j + 1, k] - grid[i, j, k])
        high = grid[i + 1, j, k] + g * (grid[i + 1, j + 1, k] - grid[i + 1, j, k])
        out[k] = low + f * (high - low)
