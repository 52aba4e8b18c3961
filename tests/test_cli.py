"""The command line as a user has it: the installed script, its streams, exit codes and files."""

from __future__ import annotations

import json
import math
import os
import pickle
import random
import re
import signal
import subprocess
import sys
import time

import numpy as np
import onnxruntime as ort
import pytest
from demo_engine import FRAMES, REPO, SCRIPT, run
from PIL import Image
from tokenizers import Tokenizer

from autovla_rt import __version__
from autovla_rt.runtime.planner import Planner
from autovla_rt.runtime.scene import read_frames_dir

PLAN_KEYS = {
    *("trajectory", "mode", "p_slow", "action_tokens", "reasoning", "finish_reason", "status"),
    *("forward_passes", "thinking_tokens", "drafted", "accepted", "stages_ms", "engine"),
}
HEAVY = ("numpy", "pydantic", "onnxruntime", "onnx", "rich", "tokenizers", "PIL", "safetensors")


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def plan(invoke, demo):
    """Plan the demo frames; the plan without its times."""

    def plan(*words, source=("--frames", FRAMES)):
        answer = invoke.json("plan", *source, "--engine", demo.engine, "--json", *words)
        assert answer.pop("stages_ms")
        return answer

    return plan


# --- help and version ----------------------------------------------------------------------------


def test_importing_the_command_line_loads_nothing_heavy():
    code = f"import sys, autovla_rt.cli; print([m for m in {HEAVY} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_help_names_commands_and_exit_codes(tmp_path):
    done = run("--help", cache=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    for word in ("export", "build", "inspect", "plan", "codebook", "--version", "Exit codes"):
        assert word in done.stdout


def test_every_error_class_has_its_own_exit_code_and_the_help_tells_it(invoke):
    from autovla_rt import errors

    classes = errors.AutovlaError.__subclasses__()
    codes = {cls.exit_code for cls in classes}
    assert len(codes) == len(classes)
    _, out, _ = invoke("--help")
    text = " ".join(out.split())
    assert all(f"{code} " in text.partition("Exit codes")[2] for code in codes | {0, 1, 2})


def test_version(invoke):
    assert invoke("--version") == (0, f"autovla-rt {__version__}\n", "")


def test_the_module_runs_too(tmp_path):
    words = [sys.executable, "-P", "-m", "autovla_rt", "--version"]
    done = subprocess.run(words, capture_output=True, text=True, check=True, cwd=tmp_path)
    assert done.stdout == f"autovla-rt {__version__}\n"


def test_make_shows_its_targets():
    done = subprocess.run(["make"], cwd=REPO, capture_output=True, text=True, check=True)
    for target in ("help", "setup", "demo", "engine", "test", "lint", "bench", "clean"):
        assert f"\n{target} " in "\n" + done.stdout


# --- plan ----------------------------------------------------------------------------------------


def test_a_plan_in_json_has_every_field(demo, tmp_path):
    words = ("plan", "--frames", FRAMES, "--engine", demo.engine, "--mode", "fast", "--json")
    done = run(*words, cache=tmp_path)
    assert done.returncode == 0
    answer = json.loads(done.stdout)
    assert set(answer) == PLAN_KEYS
    trajectory = np.array(answer["trajectory"])
    assert trajectory.shape == (10, 3)
    assert np.isfinite(trajectory).all()
    start = Tokenizer.from_file(str(demo.base / "tokenizer.json")).token_to_id("<action_0>")
    assert len(answer["action_tokens"]) == 10
    assert all(start <= token < start + 2048 for token in answer["action_tokens"])
    assert answer["mode"] == "fast"
    assert answer["p_slow"] > 0.5  # roadworks: the model itself would think
    assert (answer["reasoning"], answer["finish_reason"], answer["status"]) == ("", "stop", "ok")
    assert 1 <= answer["forward_passes"] <= 11
    stages = [
        "image_decode",
        "preprocess",
        "vision",
        "prompt",
        "draft",
        "prefill",
        "decision",
        "actions",
    ]
    assert list(answer["stages_ms"]) == [*stages, "trajectory"]
    assert all(value > 0 for value in answer["stages_ms"].values())
    assert answer["engine"]["name"] == "engine"
    assert answer["engine"]["notes"] == ["a note"]
    assert f"loaded {demo.engine}" in done.stderr
    assert "note: a note" in done.stderr


def test_the_human_plan_tells_what_the_json_tells(demo, tmp_path, plan):
    answer = plan()
    done = run("plan", "--frames", FRAMES, "--engine", demo.engine, cache=tmp_path)
    assert done.returncode == 0
    assert " ".join(map(str, answer["action_tokens"])) in done.stdout
    x, y, heading = answer["trajectory"][-1]
    last = next(line for line in done.stdout.splitlines() if "│   5.0 │" in line)
    cells = [float(cell) for cell in last.strip("│ ").split("│")]
    assert cells == pytest.approx([5, x, y, math.degrees(heading)], abs=0.051)
    assert f"{answer['p_slow']:.3f}" in done.stdout
    assert "note 1" in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 80


def test_a_terminal_without_the_signs_still_shows_the_plan(demo, tmp_path):
    done = run(
        *("plan", "--frames", FRAMES, "--engine", demo.engine),
        cache=tmp_path,
        env={"PYTHONIOENCODING": "ascii"},
    )
    assert done.returncode == 0, done.stderr
    assert "heading (?)" in done.stdout


def test_equal_requests_give_equal_plans(plan):
    assert plan() == plan()


def test_a_scene_gives_the_plan_of_its_frames(plan):
    scene = ("--scene", FRAMES / "scene.json", "--sensor-root", FRAMES)
    assert plan(source=scene) == plan()


def test_options_replace_values_of_the_scene_file(plan):
    values = json.loads((FRAMES / "scene.json").read_text())
    same = plan(
        *("--speed", values["velocity"], "--acceleration", values["acceleration"]),
        *("--instruction", values["instruction"].upper()),
    )
    assert same == plan()
    assert plan("--speed", 0.5)["p_slow"] != same["p_slow"]
    assert plan("--acceleration", -3)["p_slow"] != same["p_slow"]
    assert plan("--instruction", "turn left")["p_slow"] != same["p_slow"]


def test_the_python_interface_gives_the_same_plan(plan, demo):
    planner = Planner.load(demo.engine)
    answer = planner.plan(read_frames_dir(FRAMES)).as_dict()
    assert answer.pop("stages_ms")
    assert answer == plan()


def test_forced_modes(plan):
    fast, slow = plan("--mode", "fast"), plan("--mode", "slow", "--thinking-token-budget", 8)
    assert (fast["mode"], fast["reasoning"], fast["thinking_tokens"]) == ("fast", "", 0)
    assert slow["mode"] == "slow"
    assert slow["finish_reason"] == "thinking_budget"
    assert slow["thinking_tokens"] == 8
    assert slow["reasoning"]
    assert slow["p_slow"] == fast["p_slow"]
    assert len(slow["action_tokens"]) == 10


def test_sampling_depends_on_the_seed_alone(plan):
    options = ("--temperature", 2, "--top-k", 50, "--top-p", 0.99, "--repetition-penalty", 1.05)
    first = plan(*options, "--seed", 1)
    assert plan(*options, "--seed", 1) == first
    assert plan(*options, "--seed", 2)["action_tokens"] != first["action_tokens"]


def test_out_and_plot_are_written_beside_the_answer(plan, tmp_path):
    folder = tmp_path / "results"
    folder.mkdir()
    out, plot = folder / "plan.json", folder / "plan.png"
    out.write_text("old")
    answer = plan("--out", out, "--plot", plot)
    written = json.loads(out.read_text())
    assert written.pop("stages_ms")
    assert written == answer
    with Image.open(plot) as picture:
        picture.load()
        assert picture.format == "PNG"
        assert picture.size == (1400, 900)
    assert plot.stat().st_size < 400_000
    assert sorted(folder.iterdir()) == [out, plot]
    assert answer == plan()


@pytest.mark.parametrize(
    ("words", "count"), [((), 8), (("--alternatives", 2), 2), (("--alternatives", 0), 0)]
)
def test_the_picture_shows_expert_and_alternatives(plan, tmp_path, monkeypatch, words, count):
    from autovla_rt.runtime import plot

    drawn = []
    monkeypatch.setattr(plot, "draw_plan", lambda *given: drawn.append(given))
    budget = ("--thinking-token-budget", 8)
    plot_to = ("--plot", tmp_path / "x.png")
    answer = plan(*plot_to, "--mode", "fast", *budget, "--seed", 4, *words)
    ((drawn_plan, request, alternatives, png),) = drawn
    assert drawn_plan.trajectory == answer["trajectory"]
    assert len(request.expert) == 10
    assert png == tmp_path / "x.png"
    assert len(alternatives.samples) == count
    if not count:
        assert alternatives.other_mode is None
        return
    slow = plan("--mode", "slow", *budget)
    assert alternatives.other_mode.action_tokens == slow["action_tokens"]
    second = plan("--mode", "fast", "--temperature", 1, "--seed", 5)
    assert alternatives.samples[1].action_tokens == second["action_tokens"]


def test_out_may_be_a_stream(demo, tmp_path):
    words = ("plan", "--frames", FRAMES, "--engine", demo.engine, "--out", "/dev/stderr", "--json")
    done = run(*words, cache=tmp_path)
    assert done.returncode == 0
    assert json.loads(done.stdout)["trajectory"][0] == pytest.approx(
        json.loads(done.stderr[done.stderr.index("{") :])["trajectory"][0]
    )


def test_one_thread_plans(plan):
    assert plan("--threads", 1)["status"] == "ok"


# --- build, inspect, export, codebook ------------------------------------------------------------


def test_inspect_in_json(invoke, demo):
    answer = invoke.json("inspect", demo.engine, "--json", "--verify")
    manifest = json.loads((demo.engine / "engine.json").read_text())
    assert answer == {"sha256": answer["sha256"], **manifest}
    assert answer["precision"] == {
        "vision": "int8",
        "language": "int8",
        "overrides": {},
        "kv": "auto",
        "int4_block": 128,
        "activations": "fp32",
    }
    assert answer["notes"] == ["a note"]
    assert {path.name for path in demo.engine.iterdir()} == {"engine.json", *answer["files"]}


def test_inspect_for_people(demo, tmp_path):
    done = run("inspect", demo.engine, cache=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    for word in ("engine engine", "cpu (ort)", "int8", "2048 positions", "language.onnx", "sum"):
        assert word in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 80


def test_a_closed_pipe_is_no_crash(demo, tmp_path):
    done = subprocess.run(
        f"'{SCRIPT}' inspect '{demo.engine}' --json | head -c 5",
        shell=True,
        capture_output=True,
        text=True,
        env={**os.environ, "XDG_CACHE_HOME": str(tmp_path)},
    )
    assert done.stdout == '{\n "s'
    assert "Traceback" not in done.stderr


def test_building_twice_gives_the_same_bytes(demo, invoke, tmp_path):
    out = tmp_path / "engine"
    assert invoke("build", *demo.build_options, "--out", out, "--note", "a note")[0] == 0
    for path in demo.engine.iterdir():
        assert (out / path.name).read_bytes() == path.read_bytes(), path.name


@pytest.mark.parametrize("precision", ["fp32", "int4"])
def test_other_precisions_plan(demo, invoke, tmp_path, precision):
    out = tmp_path / precision
    code, stdout, _ = invoke("build", *demo.build_options, "--out", out, "--precision", precision)
    assert (code, stdout) == (0, "")
    answer = invoke.json("plan", "--frames", FRAMES, "--engine", out, "--json")
    assert answer["engine"]["precision"]["language"] == precision
    assert len(answer["trajectory"]) == 10


def test_a_size_for_each_camera(demo, invoke, tmp_path):
    out = tmp_path / "engine"
    sizes = ("--frame-size", "1920x1080", "--frame-size", "front=320x320")
    assert invoke("build", *demo.build_options, "--out", out, *sizes)[0] == 0
    cameras = {c["name"]: c["grid"] for c in invoke.json("inspect", out, "--json")["cameras"]}
    assert cameras["front"] != cameras["front_left"] == cameras["front_right"] == [2, 8, 14]
    assert (out / "vision_8x14.onnx").exists()
    frames = tmp_path / "frames"
    for camera, size in {"front": 320, "front_left": None, "front_right": None}.items():
        (frames / camera).mkdir(parents=True)
        for path in sorted((FRAMES / camera).iterdir()):
            picture = Image.open(path)
            resized = picture.resize((size, size)) if size else picture
            resized.save(frames / camera / f"{path.stem}.bmp")
    motion = ("--speed", 3, "--acceleration", 0, "--instruction", "go")
    answer = invoke.json("plan", "--frames", frames, "--engine", out, "--json", *motion)
    assert answer["status"] == "ok"


@pytest.mark.parametrize(
    ("part", "graphs"),
    [
        ("vision", {"vision_8x14.onnx"}),
        ("language", {"language.onnx", "text_head.onnx"}),
        ("all", {"vision_8x14.onnx", "language.onnx", "text_head.onnx"}),
    ],
)
def test_export_writes_graphs_that_load(demo, invoke, tmp_path, part, graphs):
    out = tmp_path / "onnx"
    code, stdout, err = invoke("export", part, *demo.build_options, "--out", out)
    assert (code, stdout) == (0, ""), err
    assert {path.name for path in out.glob("*.onnx")} == graphs
    for graph in graphs:
        session = ort.InferenceSession(str(out / graph), providers=["CPUExecutionProvider"])
        assert session.get_outputs()
    assert not (out / "engine.json").exists()


def test_codebook_import_and_show(demo, invoke, tmp_path):
    boxes = np.array([[2.4, 1, 2.4, -1, -2.4, -1, -2.4, 1]], np.float32).reshape(1, 1, 4, 2)
    corners = np.tile(boxes, (5, 6, 1, 1)) + np.arange(5, dtype=np.float32)[:, None, None, None]
    source, out, png = tmp_path / "official.pkl", tmp_path / "c.safetensors", tmp_path / "c.png"
    source.write_bytes(pickle.dumps({"token_all": {"veh": corners}}))
    imported = invoke.json("codebook", "import", source, out)
    assert imported["entries"] == 5
    assert imported["dx"] == [0, 4]
    assert invoke.json("codebook", "show", out, png) == imported
    with Image.open(png) as picture:
        assert picture.format == "PNG"


def test_codebook_build(invoke, tmp_path):
    out = tmp_path / "c.safetensors"
    built = invoke.json("codebook", "build", FRAMES, out, "--disks", 5)
    assert built["info"]["entries"] == 5
    assert built["scenes"] == 1
    assert invoke.json("codebook", "show", out) == built["info"]


# --- killed --------------------------------------------------------------------------------------


@pytest.mark.parametrize("moment", ["vision tower", "language model", "bundle"])
def test_a_killed_build_leaves_the_old_engine(demo, invoke, plan, tmp_path, moment):
    out = tmp_path / "engines" / "x"
    assert invoke("build", *demo.build_options, "--out", out)[0] == 0
    before = invoke.json("inspect", out, "--json", "--verify")
    words = [SCRIPT, "build", *demo.build_options, "--out", out, "--precision", "fp32"]
    with subprocess.Popen(words, stderr=subprocess.PIPE, text=True) as build:
        assert any(line.strip() == moment for line in build.stderr)
        time.sleep(random.uniform(0, 0.01))
        build.send_signal(signal.SIGKILL)
    assert build.returncode == -signal.SIGKILL
    assert len(list(out.parent.iterdir())) == 2  # the old engine and what the build left
    assert invoke.json("inspect", out, "--json", "--verify") == before
    answer = invoke.json("plan", "--frames", FRAMES, "--engine", out, "--json")
    assert answer["action_tokens"] == plan()["action_tokens"]
    assert invoke("build", *demo.build_options, "--out", out)[0] == 0
    assert list(out.parent.iterdir()) == [out]


def test_two_builds_into_one_folder(demo, invoke, tmp_path):
    out = tmp_path / "engines" / "x"
    words = [SCRIPT, "build", *demo.build_options, "--out", out, "--precision"]
    builds = [subprocess.Popen([*words, precision]) for precision in ("int8", "fp32")]
    assert [build.wait(timeout=60) for build in builds] == [0, 0]
    assert invoke("inspect", out, "--verify")[0] == 0
    assert invoke("plan", "--frames", FRAMES, "--engine", out)[0] == 0
    assert list(out.parent.iterdir()) == [out]


def test_recipe_prints_what_a_checkout_gives(invoke, tmp_path):
    code, out, _ = invoke("recipe", REPO / "tests" / "export" / "fixtures" / "checkout")
    assert code == 0
    (tmp_path / "printed.toml").write_text(out)
    assert invoke("recipe", tmp_path / "printed.toml")[0] == 0
    assert "{instruction}" in out
    assert "three windows" in out


def test_no_help_has_brackets_which_rich_would_take_for_markup():
    from typer.main import get_command

    from autovla_rt.cli import app

    def helps(command, path):
        yield from ((path, getattr(of, "help", None) or "") for of in command.params)
        for name, below in getattr(command, "commands", {}).items():
            yield from helps(below, f"{path} {name}")

    listed = list(helps(get_command(app), "autovla-rt"))
    assert len(listed) > 100
    assert [(path, text) for path, text in listed if re.search(r"\[[a-z#/@]", text)] == []
