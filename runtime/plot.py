"""A picture of a plan: the newest frames, the way from above, the answer and its time.

Every panel is a function that draws on axes it is given, so that other pictures can use it. The
model's and the bundle's texts are untrusted: they are drawn as they are, never parsed as formulas.
"""

from __future__ import annotations

import io
import re
import warnings
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.patches import Polygon, Rectangle
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray
from PIL import Image

from autovla_rt.kernels.contour import BOX_LENGTH, pose_to_corners, transform
from autovla_rt.output_file import write_file
from autovla_rt.report import printable
from autovla_rt.runtime.frame_source import Frame, describe, read_image, to_rgb
from autovla_rt.runtime.plan import Alternatives, Plan
from autovla_rt.runtime.scene import Request, Trajectory

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WIDTH, HEIGHT, DPI = 1400, 900, 100
"""Pixels of the picture, and how many of them are an inch of text."""

MAX_BYTES = 400_000
"""Larger pictures (photographs do not compress well as PNG) are stored with 256 colours."""

LEFT_TO_RIGHT = ("front_left", "front", "front_right")
"""The cameras as a driver sees them."""

SHORTEST_VIEW = 20.0
MARGIN = 2.0
"""Metres: least length and width of the bird's-eye view, and room around what it shows."""

LABEL_DISTANCE = 2.5
"""Metres between poses that get a label of their time; nearer ones would lie on each other."""

INK, MUTED, RULE, PAPER = "#1f2933", "#66727f", "#e3e7eb", "#ffffff"
PLAN, EXPERT, OTHER, SAMPLE = "#0072b2", "#009e73", "#d55e00", "#7f8c99"
"""Blue, green and vermillion of Okabe and Ito (Color Universal Design, 2008), and grey."""

STYLE: dict[str, Any] = {
    "text.usetex": False,
    "text.parse_math": False,
    "axes.formatter.use_mathtext": False,
    "font.family": ["DejaVu Sans"],
    "font.size": 9,
    "text.color": INK,
    "axes.facecolor": PAPER,
    "axes.edgecolor": RULE,
    "axes.labelcolor": MUTED,
    "axes.grid": False,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "figure.facecolor": PAPER,
}
"""What the picture takes from no user's matplotlibrc; formulas and TeX are off."""

LEGEND_ORDER = ("plan", "expert", "other mode", "samples")
"""Gids of the lines in a bird's-eye view."""

HALO = [withStroke(linewidth=2.5, foreground=PAPER)]
"""Keeps small text readable on lines."""

Meter = Callable[[str], float]
"""Measures a line of text in pixels."""

LONGEST_LINE = 500
"""Characters that are measured at most; no line of the picture has room for as many."""

LONGEST_PIECE = 32
"""Characters after which a word without spaces may be broken; fits every line used here."""


@contextmanager
def _drawing() -> Iterator[None]:
    """Draw in our style, and without a warning for each character that the font lacks."""
    with mpl.rc_context(STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from")
        yield


def draw_plan(plan: Plan, request: Request, alternatives: Alternatives, png: Path) -> None:
    """Write the picture of a plan as a PNG of 1400 x 900 pixels.

    Raises:
        InputError: a frame cannot be read.
        StorageError: the picture cannot be written.
    """
    write_file(png, figure_png(plan_figure(plan, request, alternatives)))


@_drawing()
def plan_figure(plan: Plan, request: Request, alternatives: Alternatives) -> Figure:
    """Lay out the picture of a plan.

    Raises:
        InputError: a frame cannot be read.
    """
    figure = new_figure()
    edge, gap = 28, 8
    width = (WIDTH - 2 * edge - 2 * gap) / 3
    cameras = [add_axes(figure, edge + i * (width + gap), 62, width, 249) for i in range(3)]
    birds_eye = add_axes(figure, 78, 342, 500, 506)
    answer = add_axes(figure, 628, 338, WIDTH - edge - 628, 324)
    stages = add_axes(figure, 712, 698, WIDTH - edge - 712, 172)
    draw_header(add_axes(figure, edge, 0, WIDTH - 2 * edge, 62), plan.engine)
    draw_cameras(cameras, request.frames)
    draw_birds_eye(
        birds_eye,
        plan.trajectory,
        expert=request.expert,
        alternatives=alternatives,
        dt=plan.engine["dt"],
    )
    draw_answer(answer, plan, request, alternatives)
    draw_stages(stages, plan.stages_ms)
    return figure


def new_figure() -> Figure:
    """Return an empty figure of `WIDTH` x `HEIGHT` pixels on an Agg canvas."""
    figure = Figure(figsize=(WIDTH / DPI, HEIGHT / DPI), dpi=DPI, facecolor=PAPER)
    FigureCanvasAgg(figure)
    return figure


def add_axes(figure: Figure, left: float, top: float, width: float, height: float) -> Axes:
    """Add axes at a place given in pixels from the figure's upper left corner."""
    return figure.add_axes(
        (left / WIDTH, 1 - (top + height) / HEIGHT, width / WIDTH, height / HEIGHT)
    )


@_drawing()
def figure_png(figure: Figure) -> bytes:
    """Render a figure to a PNG, with 256 colours where it would exceed `MAX_BYTES` otherwise."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    picture = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
    png = _encode(picture)
    return png if len(png) <= MAX_BYTES else _encode(_with_256_colours(picture))


def _with_256_colours(picture: Image.Image) -> Image.Image:
    """Keep our own colours and their blends with the paper; the photographs share the others."""
    shades = np.linspace(0, 1, 7)[1:, None, None]
    blends = shades * _rgb((INK, MUTED, PLAN, EXPERT, OTHER, SAMPLE)) + (1 - shades) * _rgb([PAPER])
    ours = np.concatenate([_rgb((PAPER, RULE)), blends.reshape(-1, 3)]).round()
    common = picture.quantize(256 - len(ours)).getpalette() or []
    others = np.array(common, np.float64).reshape(-1, 3)
    # Pillow looks colours up in cells of 4 levels, so a near neighbour would win against ours.
    distances = abs(others[:, None] - ours).max(axis=-1)
    colors = np.concatenate([ours, others[distances.min(axis=-1) > 8]])[:256]
    palette = Image.new("P", (1, 1))
    palette.putpalette(colors.astype(np.uint8).flatten().tolist())
    return picture.quantize(palette=palette, dither=Image.Dither.NONE)


def _rgb(colors: Sequence[str]) -> NDArray[np.float64]:
    """Colours "#rrggbb" as rows [k, 3] of levels 0..255."""
    return np.array([list(bytes.fromhex(color[1:])) for color in colors], np.float64)


def _encode(picture: Image.Image) -> bytes:
    encoded = io.BytesIO()
    picture.save(encoded, "PNG", optimize=True)
    return encoded.getvalue()


@_drawing()
def draw_header(axes: Axes, engine: Mapping[str, Any]) -> None:
    """Name the engine (a plan's `engine`), and its notes on the right."""
    paper = _Paper(axes)
    precision = engine["precision"]
    name = paper.write(engine["name"], 0, 39, size=17, weight="bold", width=paper.width * 0.3)
    built = (
        *(engine["target"], engine["backend"]),
        f"vision {precision['vision']}, language {precision['language']}",
        engine["sha256"][:12],
    )
    room = paper.width * 0.4
    end = paper.write("  ·  ".join(built), name + 16, 39, size=10, color=MUTED, width=room)
    notes = "  ·  ".join(engine["notes"])
    room = paper.width - end - 24
    paper.write(notes, paper.width, 39, size=10, color=OTHER, width=room, ha="right")


@_drawing()
def draw_cameras(axes: Sequence[Axes], frames: Mapping[str, Sequence[Frame]]) -> None:
    """Show the newest frame of each camera of `LEFT_TO_RIGHT` on its axes.

    Args:
        axes: Three, left to right.
        frames: Camera -> its frames, oldest first.

    Raises:
        InputError: a frame cannot be read.
    """
    for place, camera in zip(axes, LEFT_TO_RIGHT, strict=True):
        newest = len(frames[camera]) - 1
        name = describe(frames[camera][newest], camera, newest)
        picture = to_rgb(read_image(frames[camera][newest], name), name)
        box = place.get_window_extent()
        picture.thumbnail((2 * round(box.width), 2 * round(box.height)), Image.Resampling.LANCZOS)
        place.imshow(np.asarray(picture), interpolation="lanczos")
        place.set_axis_off()
        place.text(
            *(0.018, 0.97, camera.replace("_", " ")),
            transform=place.transAxes,
            va="top",
            color=PAPER,
            bbox={"facecolor": INK, "alpha": 0.72, "edgecolor": "none", "boxstyle": "round,pad=.3"},
        )


@_drawing()
def draw_birds_eye(
    axes: Axes,
    trajectory: Trajectory,
    *,
    expert: Trajectory | None = None,
    alternatives: Alternatives | None = None,
    dt: float = 0.5,
) -> None:
    """Draw a trajectory from above, forward up, in metres, at equal scale of both axes.

    Args:
        axes: Where to draw; the artists' gids are "plan", "box", "ego", "expert", "other mode" and
            "samples".
        trajectory: The plan, [n][x, y, heading].
        expert: What was driven, or None.
        alternatives: What else the model considered, or None.
        dt: Seconds between poses.
    """
    alternatives = alternatives or Alternatives()
    other = alternatives.other_mode
    plan = _from_ego(trajectory)
    boxes = pose_to_corners(plan)
    shown = [boxes.reshape(-1, 2)]
    axes.set_axisbelow(True)
    axes.grid(color=RULE, linewidth=0.8)
    if alternatives.samples:
        samples = [_from_ego(sample.trajectory)[:, :2] for sample in alternatives.samples]
        shown += samples
        axes.add_collection(
            LineCollection(
                [sample[:, ::-1] for sample in samples],
                colors=SAMPLE,
                linewidths=1,
                alpha=0.55,
                label=f"{len(samples)} samples" if len(samples) > 1 else "1 sample",
                gid="samples",
                zorder=2,
            )
        )
    if other is not None:
        shown.append(
            _line(axes, other.trajectory, f"{other.mode} answer", "other mode", OTHER, 1.3)
        )
    if expert is not None:
        shown.append(_line(axes, expert, "expert", "expert", EXPERT, 2.2, linestyle=(0, (4, 1.6))))
    _draw_boxes(axes, boxes)
    _line(
        axes,
        trajectory,
        "plan",
        "plan",
        PLAN,
        2,
        marker="o",
        markersize=4,
        markevery=slice(1, None),
    )
    _label_times(axes, plan, dt)
    _set_view(axes, np.concatenate(shown))
    axes.set_xlabel("sideways (m), left is positive")
    axes.set_ylabel("forward (m)")
    named, _ = axes.get_legend_handles_labels()
    named.sort(key=lambda artist: LEGEND_ORDER.index(artist.get_gid()))
    axes.legend(handles=named, loc="best", framealpha=0.9, edgecolor=RULE, borderpad=0.7)


def _from_ego(trajectory: Trajectory) -> NDArray[np.float64]:
    """Poses [1 + n, 3], the ego's own at the origin first."""
    return np.vstack([np.zeros(3), np.asarray(trajectory, np.float64)])


def _line(
    axes: Axes,
    trajectory: Trajectory,
    label: str,
    gid: str,
    color: str,
    linewidth: float,
    **style: Any,
) -> NDArray[np.float64]:
    """Draw a trajectory as a line from the ego; returns its points [1 + n, 2]."""
    points = _from_ego(trajectory)[:, :2]
    axes.plot(
        *(points[:, 1], points[:, 0]),
        color=color,
        linewidth=linewidth,
        label=label,
        gid=gid,
        zorder=4 if gid == "plan" else 3,
        solid_capstyle="round",
        **style,
    )
    return points


def _draw_boxes(axes: Axes, boxes: NDArray[np.float64]) -> None:
    """Draw the ego's box and, fading with time, the box of every later pose."""
    for index, corners in enumerate(boxes[1:]):
        fade = 1 - index / len(boxes)
        axes.add_patch(
            Polygon(
                corners[:, ::-1],
                facecolor=(PLAN, 0.28 * fade),
                edgecolor=(PLAN, 0.15 + 0.75 * fade),
                linewidth=1,
                gid="box",
                zorder=2.5,
            )
        )
    axes.add_patch(Polygon(boxes[0][:, ::-1], facecolor=INK, gid="ego", zorder=4.5))
    nose = BOX_LENGTH / 2 * np.array([[0.8, 0], [0.45, 0.25], [0.45, -0.25]])
    axes.add_patch(Polygon(nose[:, ::-1], facecolor=PAPER, zorder=4.6))


def _label_times(axes: Axes, poses: NDArray[np.float64], dt: float) -> None:
    """Write the time at every full second beside the plan, unless labels would collide."""
    last = poses[0]
    for index in range(1, len(poses)):
        seconds = index * dt
        if seconds % 1 or np.hypot(*(poses[index] - last)[:2]) < LABEL_DISTANCE:
            continue
        last = poses[index]
        ((x, y),) = transform(last, np.array([[0.0, -1.5]]))
        axes.text(
            *(y, x, f"{seconds:.0f} s"),
            color=PLAN,
            size=8,
            ha="left",
            va="center",
            zorder=5,
            path_effects=HALO,
        )


def _set_view(axes: Axes, points: NDArray[np.float64]) -> None:
    """Fit [k, 2] points of x and y into the axes: one scale, the ego in the middle if it can be.

    A view is never shorter or narrower than `SHORTEST_VIEW`, so a standing car stays a small one.
    """
    box = axes.get_window_extent()
    low, high = points.min(axis=0) - MARGIN, points.max(axis=0) + MARGIN
    length, width = np.maximum(high - low, SHORTEST_VIEW)
    length = max(length, width * box.height / box.width)
    half = length * box.width / box.height / 2
    middle = float(np.clip(0, high[1] - half, low[1] + half))
    axes.set_xlim(middle + half, middle - half)  # left is positive
    axes.set_ylim(low[0], low[0] + length)
    axes.set_aspect("equal")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(7, steps=[1, 2, 5, 10], integer=True))


@_drawing()
def draw_answer(
    axes: Axes, plan: Plan, request: Request, alternatives: Alternatives | None = None
) -> None:
    """Tell a plan's answer: instruction, mode, p(slow), motion, time and reasoning.

    Where the plan has no reasoning, that of the other mode is shown, and said to be.
    """
    paper = _Paper(axes)
    paper.caption("instruction", 0, 10)
    paper.write(request.instruction, 0, 34, size=14, weight="bold")
    p_slow = "–" if plan.p_slow is None else f"{plan.p_slow:.2f}"
    facts = {
        "answer": plan.mode,
        "p(slow)": p_slow,
        "speed": f"{request.velocity:.1f} m/s",
        "acceleration": f"{request.acceleration:.1f} m/s²",
        "end to end": _milliseconds(sum(plan.stages_ms.values())),
    }
    column = paper.width / len(facts)
    for index, (name, value) in enumerate(facts.items()):
        paper.caption(name, index * column, 68)
        paper.write(value, index * column, 92, size=14, weight="bold", width=column - 8)
    if plan.p_slow is not None:
        paper.bar(column, 104, column * 0.62, plan.p_slow)
    other = None if alternatives is None else alternatives.other_mode
    thinker = plan if plan.thinking_tokens or other is None else other
    paper.caption(_reasoning_title(thinker, plan), 0, 136)
    text = thinker.reasoning or f"none: a {plan.mode} answer comes without"
    color = INK if plan.reasoning else MUTED
    paper.paragraph(text, 158, size=10.5, color=color, line_height=18.5)


def _reasoning_title(thinker: Plan, plan: Plan) -> str:
    cut = {"thinking_budget": ", cut at the budget", "capacity": ", cut at the KV capacity"}
    whose = "reasoning" if thinker is plan else f"reasoning of the {thinker.mode} answer, not taken"
    tokens = f", {thinker.thinking_tokens} tokens" if thinker.thinking_tokens else ""
    return f"{whose}{tokens}{cut.get(thinker.finish_reason, '')}"


@_drawing()
def draw_stages(axes: Axes, stages_ms: Mapping[str, float]) -> None:
    """Draw where the time went: one bar a stage, in order, in milliseconds."""
    names, values = list(stages_ms), list(stages_ms.values())
    bars = axes.barh(names, values, height=0.62, color=PLAN, alpha=0.75)
    axes.bar_label(bars, [_milliseconds(value) for value in values], padding=5, color=MUTED)
    axes.set_xlim(0, 1.18 * max(values, default=0) or 1)
    axes.set_ylim(max(len(names), 8) - 0.5, -0.5)
    axes.set_xticks([])
    axes.set_title("STAGES", loc="left", size=7.5, color=MUTED, x=-84 / axes.bbox.width)
    axes.tick_params(axis="y", colors=INK, pad=4)
    for side in ("top", "right", "bottom"):
        axes.spines[side].set_visible(False)


def _milliseconds(value: float) -> str:
    """Write a duration with three digits or all before the point."""
    digits = 0 if value >= 99.95 else 1 if value >= 9.995 else 2
    return f"{value:,.{digits}f} ms"


class _Paper:
    """Axes as a sheet to write on: units are pixels from its upper left corner."""

    def __init__(self, axes: Axes) -> None:
        box = axes.get_window_extent()
        self.width, self.height = float(box.width), float(box.height)
        self._axes = axes
        canvas: Any = axes.figure.canvas
        self._renderer = canvas.get_renderer()
        axes.set(xlim=(0, self.width), ylim=(self.height, 0))
        axes.set_axis_off()

    def write(
        self,
        text: str,
        x: float,
        y: float,
        *,
        size: float,
        weight: str = "normal",
        color: str = INK,
        width: float | None = None,
        ha: str = "left",
    ) -> float:
        """Write one line with its baseline at y, shortened to `width`; returns where it ends."""
        font = FontProperties(size=size, weight=weight)
        line = _shorten(
            printable(" ".join(text.split())), width or self.width - x, self._meter(font)
        )
        self._axes.text(x, y, line, fontproperties=font, color=color, ha=ha, parse_math=False)
        return x + self._meter(font)(line)

    def caption(self, text: str, x: float, y: float) -> None:
        """Write the small name of what stands below."""
        self.write(text.upper(), x, y, size=7.5, color=MUTED)

    def bar(self, x: float, y: float, width: float, share: float) -> None:
        """Draw a thin bar that is filled to a share from 0 to 1."""
        for length, color in ((width, RULE), (width * share, OTHER)):
            self._axes.add_patch(Rectangle((x, y), length, 4, facecolor=color))

    def paragraph(
        self, text: str, y: float, *, size: float, color: str, line_height: float
    ) -> None:
        """Write a text over the whole width from y on down, as much as there is room for."""
        meter = self._meter(FontProperties(size=size))
        count = int((self.height - y) // line_height) + 1
        lines = list(islice(_wrap(text, self.width, meter), count + 1))
        if len(lines) > count:
            lines[count - 1 :] = [_shorten(f"{lines[count - 1]} …", self.width, meter)]
        for index, line in enumerate(lines):
            self.write(line, 0, y + index * line_height, size=size, color=color)

    def _meter(self, font: FontProperties) -> Meter:
        measure = self._renderer.get_text_width_height_descent
        return lambda line: float(measure(line, font, ismath=False)[0])


def _shorten(line: str, width: float, meter: Meter) -> str:
    """Cut a line that is wider than `width` pixels, and mark the cut."""
    head = line[:LONGEST_LINE]
    if head == line and meter(line) <= width:
        return line
    head = head.removesuffix("…")
    kept = bisect_right(range(1, len(head) + 1), width, key=lambda n: meter(f"{head[:n]}…"))
    return f"{head[:kept].rstrip()}…"


def _wrap(text: str, width: float, meter: Meter) -> Iterator[str]:
    """Break a text into lines of `width` pixels at most, at spaces wherever there are any."""
    for paragraph in text.splitlines():
        line = ""
        for space, piece in re.findall(rf"(\s*)(\S{{1,{LONGEST_PIECE}}})", paragraph):
            piece = printable(piece)
            longer = f"{line}{' ' if space and line else ''}{piece}"
            if line and meter(longer) > width:
                yield line
                longer = piece
            line = longer
        if line:
            yield line
