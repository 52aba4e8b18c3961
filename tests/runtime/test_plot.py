"""The picture of a plan, by the artists that are in it."""

from __future__ import annotations

import io
from dataclasses import replace

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.colors import to_hex
from PIL import Image

from autovla_rt.config import CAMERAS
from autovla_rt.errors import InputError
from autovla_rt.kernels.contour import pose_to_corners
from autovla_rt.runtime import plot
from autovla_rt.runtime.plan import Alternatives, Plan
from autovla_rt.runtime.plot import draw_plan, figure_png, plan_figure
from autovla_rt.runtime.scene import Request

AHEAD = [[3.0 * i, 0.1 * i, 0.01 * i] for i in range(1, 11)]
SOFT_LEFT = [[2.9 * i, 0.05 * i * i, 0.03 * i] for i in range(1, 11)]
QUARTER = np.linspace(0.15, 1.5, 10)
TURN = np.stack([12 * np.sin(QUARTER), 12 * (1 - np.cos(QUARTER)), QUARTER], axis=1).tolist()
STANDING = [[0.0, 0.0, 0.0]] * 10
COLORS = {"front_left": (200, 0, 0), "front": (0, 200, 0), "front_right": (0, 0, 200)}

PLAN = Plan(
    trajectory=AHEAD,
    mode="fast",
    p_slow=0.25,
    action_tokens=list(range(10)),
    reasoning="",
    finish_reason="stop",
    status="ok",
    forward_passes=11,
    thinking_tokens=0,
    drafted=52,
    accepted=14,
    stages_ms={"preprocess": 20.0, "vision": 30.5, "prefill": 1.25, "actions": 100.0},
    engine={
        "name": "mine",
        "sha256": "0123456789abcdef",
        "target": "cpu",
        "backend": "ort",
        "precision": {"vision": "int8", "language": "int4", "int4_block": 128},
        "dt": 0.5,
        "notes": ["a note"],
    },
)
SLOW = replace(
    PLAN, trajectory=SOFT_LEFT, mode="slow", reasoning="A lorry brakes.", thinking_tokens=4
)


def request(expert=None, **changes):
    frames = {
        camera: [np.zeros((90, 160, 3), np.uint8)] * 3 + [np.full((90, 160, 3), color, np.uint8)]
        for camera, color in COLORS.items()
    }
    values = {"velocity": 8.0, "acceleration": 0.5, "instruction": "turn left", **changes}
    return Request(**{"frames": frames, **values, "expert": expert})


def picture(plan=PLAN, request=None, alternatives=None, **changes):
    """The figure of a plan."""
    request = globals()["request"](**changes) if request is None else request
    return plan_figure(plan, request, alternatives or Alternatives())


def birds_eye(figure):
    (axes,) = [axes for axes in figure.axes if axes.get_ylabel() == "forward (m)"]
    return axes


def artists(axes, gid):
    return [artist for artist in axes.get_children() if artist.get_gid() == gid]


def line(axes, gid):
    """Points [n, 2] of x and y of the only line of that gid."""
    (found,) = artists(axes, gid)
    return found.get_xydata()[:, ::-1]


def from_ego(trajectory):
    return np.vstack([[0, 0], np.array(trajectory)[:, :2]])


def legend(axes):
    return [text.get_text() for text in axes.get_legend().get_texts()]


def texts(figure):
    return [text.get_text() for axes in figure.axes for text in axes.texts if text.get_text()]


# --- from above ----------------------------------------------------------------------------------


def test_the_plan_is_a_line_and_a_fading_box_at_every_pose():
    axes = birds_eye(picture())
    np.testing.assert_allclose(line(axes, "plan"), from_ego(AHEAD))
    boxes = artists(axes, "box")
    expected = pose_to_corners(np.array(AHEAD))
    np.testing.assert_allclose([box.get_xy()[:4, ::-1] for box in boxes], expected)
    opacities = [box.get_facecolor()[3] for box in boxes]
    assert opacities == sorted(opacities, reverse=True)
    assert opacities[0] > 2 * opacities[-1] > 0
    (ego,) = artists(axes, "ego")
    np.testing.assert_allclose(ego.get_xy()[:4, ::-1], pose_to_corners(np.zeros(3)))


def test_expert_and_alternatives_are_drawn_and_named():
    samples = tuple(replace(PLAN, trajectory=pose) for pose in (SOFT_LEFT, TURN))
    axes = birds_eye(picture(expert=TURN, alternatives=Alternatives(SLOW, samples)))
    np.testing.assert_allclose(line(axes, "expert"), from_ego(TURN))
    np.testing.assert_allclose(line(axes, "other mode"), from_ego(SOFT_LEFT))
    (drawn,) = artists(axes, "samples")
    drawn = [segment[:, ::-1] for segment in drawn.get_segments()]
    np.testing.assert_allclose(drawn, [from_ego(SOFT_LEFT), from_ego(TURN)])
    assert legend(axes) == ["plan", "expert", "slow answer", "2 samples"]


def test_what_is_not_given_is_neither_drawn_nor_named():
    axes = birds_eye(picture())
    assert legend(axes) == ["plan"]
    assert not any(artists(axes, gid) for gid in ("expert", "other mode", "samples"))


def test_the_plan_stands_out():
    alternatives = Alternatives(SLOW, (PLAN,))
    axes = birds_eye(picture(expert=TURN, alternatives=alternatives))
    widths = [artists(axes, g)[0].get_linewidth() for g in ("plan", "other mode")]
    (samples,) = artists(axes, "samples")
    assert widths[0] > widths[1] > samples.get_linewidth()[0]
    assert samples.get_alpha() < 1
    orders = [artists(axes, g)[0].get_zorder() for g in ("samples", "other mode", "plan", "ego")]
    assert orders == sorted(orders)
    colors = {to_hex(artists(axes, g)[0].get_color()) for g in ("plan", "expert", "other mode")}
    assert len(colors) == 3


RIGHT = [[x, -y, -heading] for x, y, heading in TURN]
BACK = [[-x, y, heading] for x, y, heading in AHEAD]
MOTORWAY = [[20.0 * i, 0.0, 0.0] for i in range(1, 11)]
SIDEWAYS = [[0.1 * i, 12.0 * i, 1.5] for i in range(1, 11)]


@pytest.mark.parametrize(
    "trajectory", [STANDING, AHEAD, TURN, RIGHT, BACK, MOTORWAY, SIDEWAYS], ids=range(7)
)
def test_the_view_holds_everything_at_one_scale(trajectory):
    axes = birds_eye(picture(replace(PLAN, trajectory=trajectory), expert=STANDING))
    axes.figure.canvas.draw()
    (right, left), (bottom, top) = sorted(axes.get_xlim()), axes.get_ylim()
    assert axes.get_xlim()[0] > axes.get_xlim()[1], "left of the ego must be left"
    corners = pose_to_corners(np.array([[0, 0, 0], *trajectory])).reshape(-1, 2)
    assert bottom < corners[:, 0].min() < corners[:, 0].max() < top
    assert right < corners[:, 1].min() < corners[:, 1].max() < left
    box = axes.get_window_extent()
    assert box.width / (left - right) == pytest.approx(box.height / (top - bottom))
    assert min(top - bottom, left - right) > 19.5
    assert max(top - bottom, left - right) < 1.1 * max(np.ptp(corners, axis=0).max(), 20) + 6
    assert box.height > 480, "the view must fill its place"


def test_a_far_alternative_widens_the_view():
    far = Alternatives(None, (replace(PLAN, trajectory=MOTORWAY),))
    assert birds_eye(picture(alternatives=far)).get_ylim()[1] > 200
    assert birds_eye(picture(alternatives=Alternatives(far.samples[0]))).get_ylim()[1] > 200
    assert birds_eye(picture(expert=MOTORWAY)).get_ylim()[1] > 200


def test_times_are_labelled_where_there_is_room():
    def seconds(trajectory):
        axes = birds_eye(picture(replace(PLAN, trajectory=trajectory)))
        return [text.get_text() for text in axes.texts]

    assert seconds(AHEAD) == ["1 s", "2 s", "3 s", "4 s", "5 s"]
    assert seconds(STANDING) == []


# --- cameras -------------------------------------------------------------------------------------


def test_the_newest_frames_stand_side_by_side_as_a_driver_sees_them():
    cameras = [axes for axes in picture().axes if axes.images]
    cameras.sort(key=lambda axes: axes.get_window_extent().x0)
    names = ["front_left", "front", "front_right"]
    for axes, name in zip(cameras, names, strict=True):
        (image,) = axes.images
        assert (np.asarray(image.get_array()) == COLORS[name]).all(), name
        assert [text.get_text() for text in axes.texts] == [name.replace("_", " ")]


def test_paths_pictures_and_arrays_of_any_shape(tmp_path):
    path = tmp_path / "new.png"
    Image.new("L", (300, 300), 7).save(path)
    newest = {
        "front": path,
        "front_left": Image.new("RGBA", (40, 2000)),
        "front_right": np.zeros((5, 9), np.uint8),
    }
    request_ = replace(request(), frames={camera: [newest[camera]] * 4 for camera in CAMERAS})
    with Image.open(io.BytesIO(figure_png(picture(request=request_)))) as drawn:
        assert drawn.size == (1400, 900)


def test_a_frame_that_is_gone_is_named(tmp_path):
    frames = {**request().frames, "front": [tmp_path / "gone.png"] * 4}
    with pytest.raises(InputError, match=r"camera front, frame 3 .*gone\.png.: the file does not"):
        picture(request=replace(request(), frames=frames))


# --- answer --------------------------------------------------------------------------------------


def test_the_answer_is_told():
    shown = texts(picture(SLOW))
    facts = ("turn left", "slow", "0.25", "8.0 m/s", "0.5 m/s²", "152 ms", "A lorry brakes.")
    assert set(facts) <= set(shown)
    assert {"mine", "a note", "REASONING, 4 TOKENS"} <= set(shown)
    assert "cpu · ort · vision int8, language int4 · 0123456789ab" in shown


def test_every_stage_has_its_bar():
    (axes,) = [axes for axes in picture().axes if axes.containers]
    (bars,) = axes.containers
    assert [bar.get_width() for bar in bars] == list(PLAN.stages_ms.values())
    assert [label.get_text() for label in axes.get_yticklabels()] == list(PLAN.stages_ms)
    assert [text.get_text() for text in axes.texts] == ["20.0 ms", "30.5 ms", "1.25 ms", "100 ms"]


def test_the_reasoning_of_the_answer_not_taken_is_said_to_be():
    shown = texts(picture(alternatives=Alternatives(SLOW)))
    assert "A lorry brakes." in shown
    assert "REASONING OF THE SLOW ANSWER, NOT TAKEN, 4 TOKENS" in shown
    shown = texts(picture(SLOW, alternatives=Alternatives(PLAN)))
    assert "REASONING, 4 TOKENS" in shown
    assert "none: a fast answer comes without" in texts(picture())


def test_cut_reasoning_is_said_to_be():
    shown = texts(picture(replace(SLOW, finish_reason="thinking_budget")))
    assert "REASONING, 4 TOKENS, CUT AT THE BUDGET" in shown


def test_an_engine_of_direct_answers_has_no_p_slow():
    shown = texts(picture(replace(PLAN, mode="direct", p_slow=None)))
    assert {"direct", "–"} <= set(shown)


HOSTILE = "$x^{ \x1b[3m \u202e \ud800 \x00 $ 行 \t\n"


def test_no_text_is_parsed_and_control_characters_are_visible(monkeypatch, recwarn):
    monkeypatch.setitem(mpl.rcParams, "text.usetex", True)
    engine = {**PLAN.engine, "name": HOSTILE, "notes": [HOSTILE]}
    plan = replace(SLOW, reasoning=HOSTILE, engine=engine)
    figure = picture(plan, instruction=HOSTILE)
    assert figure_png(figure)
    clean = "$x^{ �[3m � � � $ 行"
    assert texts(figure).count(clean) == 4
    drawn = [text for axes in figure.axes for text in axes.texts]
    assert not any(text.get_parse_math() or text.get_usetex() for text in drawn)
    assert not [warning for warning in recwarn if "Glyph" in str(warning.message)]


@pytest.mark.parametrize("text", ["word " * 3000, "W" * 9000, "a\n" * 500, "行" * 3000])
def test_long_texts_stay_on_their_panel(text):
    engine = {**PLAN.engine, "name": text, "notes": [text] * 3}
    figure = picture(replace(SLOW, reasoning=text, engine=engine), instruction=text)
    renderer = figure.canvas.get_renderer()
    for axes in figure.axes:
        box = axes.get_window_extent()
        for written in axes.texts:
            extent = written.get_window_extent(renderer)
            assert box.x0 - 2 <= extent.x0, written
            assert extent.x1 <= box.x1 + 2, written
            assert box.y0 - 8 <= extent.y0, written
    assert any(shown.endswith("…") for shown in texts(figure))


def test_a_text_is_broken_at_spaces_and_loses_nothing():
    words = [f"word{i}" for i in range(60)]
    shown = texts(picture(replace(SLOW, reasoning=" ".join(words))))
    lines = [line for line in shown if line.startswith("word")]
    assert len(lines) > 2
    assert " ".join(lines).split() == words


# --- file ----------------------------------------------------------------------------------------


def test_photographs_fit_the_size_and_leave_the_colors(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (252, 448, 3), np.uint8)
    request_ = replace(request(expert=TURN), frames={camera: [noise] * 4 for camera in CAMERAS})
    draw_plan(PLAN, request_, Alternatives(SLOW, (PLAN,)), tmp_path / "plan.png")
    assert (tmp_path / "plan.png").stat().st_size < 400_000
    with Image.open(tmp_path / "plan.png") as drawn:
        assert drawn.size == (plot.WIDTH, plot.HEIGHT) == (1400, 900)
        colors = {color for _, color in drawn.convert("RGB").getcolors(1 << 20)}
    for color in (plot.PAPER, plot.INK, plot.PLAN, plot.EXPERT, plot.OTHER):
        assert tuple(bytes.fromhex(color[1:])) in colors, color


def test_equal_plans_give_equal_files():
    assert figure_png(picture()) == figure_png(picture())


def test_a_users_settings_of_matplotlib_change_nothing_and_stay(monkeypatch):
    expected = figure_png(picture())
    monkeypatch.setitem(mpl.rcParams, "font.size", 30)
    monkeypatch.setitem(mpl.rcParams, "axes.facecolor", "red")
    assert figure_png(picture()) == expected
    assert mpl.rcParams["font.size"] == 30
