"""Everything a user can get wrong: one clear message, its own exit code, nothing left behind."""

from __future__ import annotations

import gc
import json
import os
import pickle
import resource
import shutil
import subprocess
import sys

import numpy as np
import pytest
from demo_engine import FRAMES, RECIPE, contents, copy_checkpoint, run
from PIL import Image
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer

from autovla_rt.bundle import FORMAT_VERSION, manifest_seal

USAGE, INPUT, CHECKPOINT, RECIPE_CODE, CODEBOOK, BUNDLE = 2, 3, 4, 5, 6, 7
TARGET, CAPACITY, STORAGE, LIBRARY = 8, 9, 10, 11


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def bad_plan(invoke, demo):
    """Plan what must be refused; returns the message."""

    def bad_plan(code, *words, source=("--frames", FRAMES), engine=demo.engine):
        return invoke.refused(code, "plan", *source, "--engine", engine, *words)

    return bad_plan


@pytest.fixture
def frames(tmp_path):
    """A copy of the demo frames to spoil."""
    folder = tmp_path / "frames"
    shutil.copytree(FRAMES, folder)
    return folder


@pytest.fixture
def bad_build(invoke, demo, tmp_path):
    """Build what must be refused; returns the message. Nothing may appear."""

    def bad_build(code, *words, demo=demo):
        folder = tmp_path / "out"
        folder.mkdir(exist_ok=True)
        message = invoke.refused(
            code, "build", *demo.build_options, "--out", folder / "e", *map(str, words)
        )
        assert list(folder.iterdir()) == []
        return message

    return bad_build


@pytest.fixture
def mine(demo, tmp_path):
    """A copy of the miniature's files to spoil."""
    return copy_checkpoint(demo, tmp_path / "mine")


# --- frames and scene ----------------------------------------------------------------------------


def test_a_missing_camera_folder(bad_plan, frames):
    shutil.rmtree(frames / "front_left")
    message = bad_plan(INPUT, source=("--frames", frames))
    assert f"{frames}/front_left: the folder does not exist" in message
    assert "front, front_left, front_right" in message


def test_three_frames(bad_plan, frames):
    (frames / "front" / "2.jpg").unlink()
    message = bad_plan(INPUT, source=("--frames", frames))
    assert "expected 4 frames, got 3" in message


@pytest.mark.parametrize("keep", [0, 20, 3000])
def test_a_truncated_image(bad_plan, frames, keep):
    path = frames / "front_right" / "1.jpg"
    os.truncate(path, keep)
    message = bad_plan(INPUT, source=("--frames", frames))
    assert f"camera front_right, frame 1 ({path})" in message


def test_frames_of_another_grid(bad_plan, frames):
    for path in (frames / "front").iterdir():
        Image.open(path).resize((300, 300)).save(path)
    message = bad_plan(INPUT, source=("--frames", frames))
    assert "camera front: frames of 300x300 give the patch grid (2, 10, 10)" in message
    assert "built for the grid (2, 8, 14)" in message
    assert "--frame-size" in message


@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "-1"])
def test_an_unusable_speed(bad_plan, value):
    assert "velocity: expected a" in bad_plan(INPUT, f"--speed={value}")


@pytest.mark.parametrize("value", ["nan", "inf"])
def test_an_unusable_acceleration(bad_plan, value):
    assert "acceleration: expected a finite number" in bad_plan(INPUT, f"--acceleration={value}")


@pytest.mark.parametrize("value", [5, None, ["turn", "left"], {"turn": "left"}, True])
def test_an_instruction_of_another_type(bad_plan, frames, value):
    scene = json.loads((frames / "scene.json").read_text())
    (frames / "scene.json").write_text(json.dumps({**scene, "instruction": value}))
    message = bad_plan(INPUT, source=("--frames", frames))
    assert f"instruction: expected a text, got {type(value).__name__}" in message
    assert "keep forward" in message


@pytest.mark.parametrize("text", ["", "  ", "\n"])
def test_an_empty_instruction(bad_plan, text):
    assert "the instruction is empty" in bad_plan(INPUT, "--instruction", text)


@pytest.mark.parametrize("text", ["<|im_end|>", "go <ACTION_5>", "a<|VIDEO_PAD|>", "</tool_call>"])
def test_special_tokens_inside_the_instruction(bad_plan, text):
    message = bad_plan(INPUT, "--instruction", text)
    assert "expected plain words, got the special token" in message


def test_an_instruction_that_is_not_utf8(demo, tmp_path):
    words = ("plan", "--frames", FRAMES, "--engine", demo.engine, "--instruction", b"go \xff")
    done = subprocess.run(
        [sys.executable, "-m", "autovla_rt", *words],
        capture_output=True,
        env={**os.environ, "XDG_CACHE_HOME": str(tmp_path), "PYTHONSAFEPATH": "1"},
    )
    assert done.returncode == INPUT
    assert done.stdout == b""
    assert b"expected Unicode text" in done.stderr
    assert b"Traceback" not in done.stderr


def test_an_instruction_longer_than_the_cache(bad_plan):
    message = bad_plan(CAPACITY, "--instruction", "left " * 3000)
    assert "sequence positions" in message
    assert "the engine has 2048" in message
    assert len(message) < 500


@pytest.mark.parametrize(
    "key", ["dataset_name", "velocity", "acceleration", "instruction", "front_left_camera_paths"]
)
def test_a_scene_without_a_key(bad_plan, frames, key):
    scene = json.loads((frames / "scene.json").read_text())
    del scene[key]
    (frames / "scene.json").write_text(json.dumps(scene))
    message = bad_plan(INPUT, source=("--scene", frames / "scene.json", "--sensor-root", frames))
    assert f"scene.json: the key {key} is missing" in message


def test_an_expert_that_is_no_trajectory(bad_plan, frames):
    scene = json.loads((frames / "scene.json").read_text())
    scene["gt_trajectory"][3] = [1, 2]
    (frames / "scene.json").write_text(json.dumps(scene))
    for source in (
        ("--frames", frames),
        ("--scene", frames / "scene.json", "--sensor-root", frames),
    ):
        message = bad_plan(INPUT, source=source)
        assert "scene.json: gt_trajectory, pose 3: expected [x, y, heading]" in message
        assert "got list [1, 2]" in message


def test_a_scene_with_another_sensor_root(bad_plan, tmp_path):
    message = bad_plan(
        INPUT, source=("--scene", FRAMES / "scene.json", "--sensor-root", tmp_path / "no")
    )
    assert "check that root" in message


# --- options -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ((), "expected --frames or --scene, got neither"),
        (("--frames", FRAMES, "--scene", FRAMES / "scene.json"), "got both"),
        (("--frames", FRAMES, "--sensor-root", FRAMES), "--sensor-root goes with --scene"),
        (("--scene", FRAMES / "scene.json"), "--scene needs --sensor-root"),
        (
            ("--scene", FRAMES / "scene.json", "--sensor-root", FRAMES, "--speed", 1),
            "go with --frames",
        ),
    ],
)
def test_frames_and_scene_that_do_not_go_together(bad_plan, source, message):
    assert message in bad_plan(USAGE, source=source)


def test_a_negative_budget_is_wrong_usage(bad_plan):
    message = bad_plan(USAGE, "--thinking-token-budget=-1")
    assert "greater than or equal to 0" in message


def test_alternatives_without_a_picture_are_wrong_usage(bad_plan):
    for count in (0, 3):
        message = bad_plan(USAGE, "--alternatives", count)
        assert "--alternatives are drawn: add --plot FILE.png" in message


@pytest.mark.parametrize("count", ["-1", "65", "x"])
def test_a_number_of_alternatives_out_of_range(bad_plan, tmp_path, count):
    message = bad_plan(USAGE, "--plot", tmp_path / "x.png", f"--alternatives={count}")
    assert "--alternatives" in message
    assert not (tmp_path / "x.png").exists()


@pytest.mark.parametrize("threads", ["0", "-3", "100000", "2000000000"])
def test_a_number_of_threads_that_makes_no_sense(bad_plan, threads):
    message = bad_plan(INPUT, f"--threads={threads}")
    assert f"threads: expected 1 to {os.cpu_count()} (the cores" in message
    assert f"got {threads}" in message


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--temperature", "-1"), "temperature must be a finite number >= 0"),
        (("--temperature", "nan"), "temperature must be a finite number >= 0"),
        (("--temperature", "1", "--top-p", "2"), "top_p must be a number from 0 to 1"),
        (("--temperature", "1", "--top-k", "-2"), "top_k must be a whole number >= 0"),
        (("--top-k", "5"), "no effect on a greedy choice"),
        (("--seed", "-1"), "seed must be a whole number >= 0"),
        (("--repetition-penalty", "0"), "repetition_penalty must be a finite number > 0"),
    ],
)
def test_unusable_decoding_options(bad_plan, words, message):
    assert message in bad_plan(INPUT, *words)


@pytest.mark.parametrize("threads", ["0", "100000"])
def test_profile_refuses_the_same_threads(invoke, demo, threads):
    words = ("profile", "--frames", FRAMES, "--engine", demo.engine, f"--threads={threads}")
    assert f"got {threads}" in invoke.refused(INPUT, *words)


@pytest.mark.parametrize("words", [("--mode", "never"), ("--threads", "x"), ("--bogus",)])
def test_wrong_usage(bad_plan, words):
    bad_plan(USAGE, *words)


@pytest.mark.parametrize("option", ["--out", "--plot"])
def test_an_output_that_cannot_be_written_is_refused_before_the_engine_loads(
    bad_plan, tmp_path, option
):
    for path, reason in {
        tmp_path: "it is a folder",
        tmp_path / "no" / "x": f"there is no folder {tmp_path / 'no'}",
    }.items():
        message = bad_plan(STORAGE, option, path, engine=tmp_path / "never opened")
        assert f"{path}: cannot be written: {reason}" in message
    assert list(tmp_path.iterdir()) == []


def test_an_output_that_fails_while_writing_leaves_nothing(bad_plan, tmp_path):
    # Root may write everywhere: /proc accepts no new files from anyone.
    assert "/proc/plan.json: cannot be written" in bad_plan(STORAGE, "--out", "/proc/plan.json")
    assert [path.name for path in tmp_path.iterdir()] == ["cache"]


def test_an_old_output_survives_a_failing_plan(bad_plan, frames, tmp_path):
    out = tmp_path / "plan.json"
    out.write_text("old")
    (frames / "front" / "2.jpg").unlink()
    bad_plan(INPUT, "--out", out, source=("--frames", frames))
    assert out.read_text() == "old"


@pytest.mark.parametrize(
    ("library", "words", "extra"),
    [
        ("matplotlib", ("plan", "--frames", FRAMES, "--engine", "no", "--plot", "x.png"), "plot"),
        ("onnx", ("build", "--checkpoint", "x", "--config", "x", "--out", "e"), "export"),
        ("yaml", ("build", "--checkpoint", "x", "--config", "x", "--out", "e"), "export"),
    ],
)
def test_a_missing_library_names_the_pip_line(tmp_path, library, words, extra):
    # A path hook that knows no such library, as in an environment without it.
    code = f"""
import sys
from importlib.machinery import PathFinder
class Without:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == {library!r}:
            return None
        return PathFinder.find_spec(name, path, target)
sys.meta_path[:] = [Without() if f is PathFinder else f for f in sys.meta_path]
sys.argv = ["autovla-rt", *{list(map(str, words))!r}]
from autovla_rt.cli import main
main()
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == LIBRARY, done.stderr
    assert f"needs {library}" in done.stderr
    assert f"pip install 'autovla-rt[{extra}]'" in done.stderr
    assert "Traceback" not in done.stderr
    assert (done.stdout, list(tmp_path.iterdir())) == ("", [])


# --- targets and sizes ---------------------------------------------------------------------------


def test_fp8_on_orin_is_refused_before_any_work(bad_build):
    message = bad_build(
        TARGET,
        *("--target", "agx-orin-64", "--precision", "fp8", "--checkpoint", "/absent"),
    )
    assert "'fp8' on agx-orin-64 (Jetson AGX Orin 64 GB, SM 8.7)" in message
    assert "expected one of fp16, int8, int8_sq, int8_wo, int4" in message
    assert "opening" not in message


@pytest.mark.parametrize(
    ("words", "messages"),
    [
        (("--target", "moon"), ("target 'moon': expected one of cpu,",)),
        (("--target", "agx-orin-64"), ("expected --calibration", "choose fp16, int8_wo")),
        (("--precision", "int3"), ("expected one of fp32, int8, int8_sq, int4",)),
        (("--precision", "int4", "--int4-block", 8), ("int4 block 8: expected one of 16,",)),
        (("--int4-block", 0), ("int4 block 0",)),
    ],
)
def test_illegal_targets_and_precisions(bad_build, words, messages):
    message = bad_build(TARGET, *words)
    assert all(part in message for part in messages)


@pytest.mark.parametrize(
    "size",
    [
        *("", "12", "12x", "x12", "0x0", "-5x5", "1.5x2", "axb", "5 x 5", "rear=10x10", "=9x9"),
        *("front=", "²x3", "9" * 5000 + "x1", "10x20x30"),
    ],
)
def test_a_frame_size_that_is_none(bad_build, size):
    message = bad_build(INPUT, f"--frame-size={size}")
    assert "expected WIDTHxHEIGHT in pixels such as 1920x1080" in message
    assert "front=1920x1080" in message
    assert len(message) < 300


def test_frame_sizes_that_do_not_suffice(bad_build):
    assert "got none for front_left, front_right" in bad_build(INPUT, "--frame-size=front=9x9")
    assert "aspect ratio of 500" in bad_build(INPUT, "--frame-size=10x5000")


@pytest.mark.parametrize(
    ("capacity", "message"),
    [("300", "KV capacity 300: expected at least"), ("2000000000", "expected at most 128000")],
)
def test_a_cache_that_fits_no_prompt_or_no_model(bad_build, capacity, message):
    assert message in bad_build(CAPACITY, "--kv-capacity", capacity)


# --- checkpoint, tokenizer, codebook, recipe -----------------------------------------------------


def rewrite_weights(demo, change):
    path = demo.base / "model.safetensors"
    size = int.from_bytes(path.read_bytes()[:8], "little")
    raw = path.read_bytes()
    header = json.loads(raw[8 : 8 + size])
    change(header)
    head = json.dumps(header).encode()
    path.write_bytes(len(head).to_bytes(8, "little") + head + raw[8 + size :])


def test_a_checkpoint_with_a_missing_tensor(bad_build, mine):
    rewrite_weights(mine, lambda header: header.pop("visual.blocks.1.norm1.weight"))
    message = bad_build(CHECKPOINT, demo=mine)
    assert "visual.blocks.1.norm1.weight" in message


def test_a_checkpoint_with_a_surplus_tensor(bad_build, mine):
    rewrite_weights(
        mine, lambda header: header.update({"extra.weight": header["model.norm.weight"]})
    )
    assert "extra.weight" in bad_build(CHECKPOINT, demo=mine)


def test_a_checkpoint_with_a_wrong_shape(bad_build, mine):
    def transpose(header):
        header["model.layers.0.mlp.up_proj.weight"]["shape"].reverse()

    rewrite_weights(mine, transpose)
    message = bad_build(CHECKPOINT, demo=mine)
    assert "model.layers.0.mlp.up_proj.weight" in message
    assert "768" in message
    assert "256" in message


def test_a_truncated_checkpoint(bad_build, mine):
    path = mine.base / "model.safetensors"
    os.truncate(path, path.stat().st_size // 2)
    assert "model.safetensors" in bad_build(CHECKPOINT, demo=mine)


@pytest.mark.parametrize("offset", [-1, 1])
def test_an_action_start_one_off(bad_build, mine, offset):
    start = Tokenizer.from_file(str(mine.base / "tokenizer.json")).token_to_id("<action_0>")
    text = mine.config.read_text()
    mine.config.write_text(
        text.replace(f"action_start_id: {start}", f"action_start_id: {start + offset}")
    )
    message = bad_build(CHECKPOINT, demo=mine)
    assert f"<action_0> has id {start}, expected {start + offset}" in message
    assert "model.tokens.action_start_id" in message


def test_a_tokenizer_without_action_tokens(bad_build, mine):
    path = mine.base / "tokenizer.json"
    content = json.loads(path.read_text())
    content["added_tokens"] = [
        token for token in content["added_tokens"] if not token["content"].startswith("<action_")
    ]
    path.write_text(json.dumps(content))
    assert "action tokens are not there" in bad_build(CHECKPOINT, demo=mine)


def test_a_codebook_of_another_length(bad_build, mine):
    corners = load_file(mine.codebook)["corners"]
    save_file({"corners": corners[:-1]}, mine.codebook)
    message = bad_build(CODEBOOK, demo=mine)
    assert "expected 2048 entries" in message
    assert "got 2047" in message


class Malicious:
    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return os.system, (f"touch '{self.mark}'",)


def test_a_malicious_codebook_in_the_config_is_not_executed(bad_build, mine, tmp_path, invoke):
    mark = tmp_path / "executed"
    pickled = mine.codebook.with_suffix(".pkl")
    pickled.write_bytes(pickle.dumps({"token_all": {"veh": Malicious(mark)}}))
    text = mine.config.read_text()
    mine.config.write_text(text.replace("codebook.safetensors", "codebook.pkl"))
    message = bad_build(CODEBOOK, demo=mine)
    assert "codebook.pkl" in message
    assert "system" in message
    out = tmp_path / "c.safetensors"
    invoke.refused(CODEBOOK, "codebook", "import", pickled, out)
    assert not mark.exists()
    assert not out.exists()
    pickle.loads(pickled.read_bytes())
    assert mark.exists()  # it is what it claims to be


@pytest.mark.parametrize(
    ("option", "code"),
    [
        ("--checkpoint", CHECKPOINT),
        ("--config", CHECKPOINT),
        ("--base", CHECKPOINT),
        ("--codebook", CODEBOOK),
        ("--recipe", RECIPE_CODE),
    ],
)
def test_a_path_that_does_not_exist(bad_build, option, code):
    assert "/absent/file" in bad_build(code, option, "/absent/file")


def test_a_config_outside_a_checkout_needs_a_recipe(invoke, demo, tmp_path):
    words = ("--checkpoint", demo.base, "--config", demo.config, "--out", tmp_path / "e")
    message = invoke.refused(RECIPE_CODE, "build", *words)
    assert "Pass --recipe the checkout or a .toml file" in message


def test_a_recipe_with_a_slot_before_the_videos(bad_build, tmp_path):
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(RECIPE.read_text().replace('"Ahead"', '"At {velocity:.3f}"'))
    assert "velocity" in bad_build(RECIPE_CODE, "--recipe", recipe)


# --- bundle --------------------------------------------------------------------------------------


@pytest.fixture
def engine(demo, tmp_path):
    """A copy of the engine to spoil."""
    folder = tmp_path / "engine"
    shutil.copytree(demo.engine, folder)
    return folder


def test_every_file_of_an_engine_is_guarded(invoke, engine):
    invoke.json("inspect", engine, "--json")
    for path in sorted(engine.iterdir()):
        status, raw = path.stat(), path.read_bytes()
        flipped = bytearray(raw)
        flipped[len(raw) // 2] ^= 4
        path.write_bytes(flipped)
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
        assert path.name in invoke.refused(BUNDLE, "inspect", engine, "--verify")
        path.write_bytes(raw[:-2])
        assert path.name in invoke.refused(BUNDLE, "inspect", engine)
        path.unlink()
        assert path.name in invoke.refused(BUNDLE, "inspect", engine)
        path.write_bytes(raw)
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    invoke.json("inspect", engine, "--json", "--verify")


def test_a_flip_that_keeps_the_time_is_found_by_plan_verify(bad_plan, invoke, engine):
    invoke.json("inspect", engine, "--json")
    path = engine / "codebook.safetensors"
    status, raw = path.stat(), bytearray(path.read_bytes())
    raw[-3] ^= 1
    path.write_bytes(raw)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    message = bad_plan(BUNDLE, "--verify", engine=engine)
    assert "codebook.safetensors: expected sha256" in message


@pytest.mark.parametrize("command", ["inspect", "plan"])
def test_a_folder_that_is_no_engine(invoke, tmp_path, command):
    words = (tmp_path,) if command == "inspect" else ("--frames", FRAMES, "--engine", tmp_path)
    message = invoke.refused(BUNDLE, command, *words)
    assert "expected an engine bundle with engine.json" in message
    assert "autovla-rt build" in message


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format_version": FORMAT_VERSION + 1}, f"expected format version {FORMAT_VERSION}"),
        ({"files": {"../x": {"size": 1, "sha256": "0"}}}, "got '../x'"),
        ({"files": {}}, "expected the file vision_8x14.onnx in the manifest"),
        ({"kv_capacity": "many"}, "kv_capacity: Input should be a valid integer"),
    ],
)
def test_a_manifest_that_was_tampered_with(bad_plan, engine, changes, message):
    path = engine / "engine.json"
    content = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({**content, "seal": manifest_seal(content)}))
    assert message in bad_plan(BUNDLE, engine=engine)


def test_an_edited_manifest(bad_plan, engine):
    path = engine / "engine.json"
    path.write_text(path.read_text().replace('"kv_capacity": 2048', '"kv_capacity": 4096'))
    message = bad_plan(BUNDLE, engine=engine)
    assert "engine.json: expected the seal" in message
    assert "altered or damaged" in message


# --- storage -------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["build", "export"])
def test_a_folder_with_user_files_is_not_touched(invoke, demo, mine, tmp_path, command):
    before = contents(tmp_path)
    part = ("all",) if command == "export" else ()
    message = invoke.refused(STORAGE, command, *part, *demo.build_options, "--out", mine.base)
    assert f"{mine.base}: expected" in message
    assert "was not touched: choose another --out" in message
    assert contents(tmp_path) == before


def test_an_engine_with_user_files_is_not_touched(invoke, demo, engine):
    (engine / "notes.txt").write_text("mine")
    before = contents(engine)
    message = invoke.refused(STORAGE, "build", *demo.build_options, "--out", engine)
    assert "got notes.txt beside it" in message
    assert contents(engine) == before


def test_an_out_below_a_file(invoke, demo, tmp_path):
    (tmp_path / "file").write_text("mine")
    for out in (tmp_path / "file", tmp_path / "file" / "engine"):
        message = invoke.refused(STORAGE, "build", *demo.build_options, "--out", out)
        assert "choose another --out" in message
    assert (tmp_path / "file").read_text() == "mine"


@pytest.fixture
def small_disk(tmp_path):
    """A function that mounts a file system of so many KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def mount(kibibytes):
        words = ["mount", "-t", "tmpfs", "-o", f"size={kibibytes}k", "tmpfs", folder]
        if subprocess.run(words, capture_output=True).returncode:
            pytest.skip("mounting a small file system needs root")
        return folder

    yield mount
    gc.collect()  # the failed write's traceback still holds its file
    while os.path.ismount(folder):
        subprocess.run(["umount", folder], check=True)


def test_a_full_disk_anywhere_in_a_build_keeps_the_old_engine(small_disk, invoke, demo):
    size = sum(path.stat().st_size for path in demo.engine.iterdir()) // 1024
    disk = small_disk(size + 100)  # sizes are rounded up to pages
    shutil.copytree(demo.engine, disk / "e")
    for part in (0.01, 0.1, 0.3, 0.5, 0.65, 0.75, 0.85, 0.9, 0.94, 0.97):
        disk_size = int((1 + part) * size) + 100
        subprocess.run(["mount", "-o", f"remount,size={disk_size}k", disk], check=True)
        message = invoke.refused(STORAGE, "build", *demo.build_options, "--out", disk / "e")
        assert "No space left on device" in message
        assert "Free space" in message
        assert list(disk.iterdir()) == [disk / "e"]
    invoke.json("inspect", disk / "e", "--json", "--verify")


@pytest.mark.parametrize("kibibytes", [1, 30, 450, 700, 1900, 2500])
def test_a_file_size_limit_anywhere_in_a_build_keeps_the_old_engine(demo, tmp_path, kibibytes):
    folder = tmp_path / "engines"
    shutil.copytree(demo.engine, folder / "e")
    limit = kibibytes << 10
    done = run(
        *("build", *demo.build_options, "--out", folder / "e"),
        cache=tmp_path,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )
    assert done.returncode == STORAGE, done.stderr
    assert "File too large" in done.stderr
    assert "Traceback" not in done.stderr
    assert list(folder.iterdir()) == [folder / "e"]
    assert contents(folder / "e") == contents(demo.engine)


def test_a_full_disk_during_an_export_leaves_nothing(small_disk, invoke, demo):
    disk = small_disk(4000)
    message = invoke.refused(STORAGE, "export", "all", *demo.build_options, "--out", disk / "o")
    assert "No space left on device" in message
    assert list(disk.iterdir()) == []


def test_a_full_disk_for_the_plan_keeps_the_old_one(small_disk, bad_plan):
    disk = small_disk(12)
    out = disk / "plan.json"
    out.write_text("old")
    (disk / "ballast").write_bytes(bytes(8 << 10))
    assert "No space left on device" in bad_plan(STORAGE, "--out", out)
    assert out.read_text() == "old"
    assert sorted(path.name for path in disk.iterdir()) == ["ballast", "plan.json"]


def test_the_demo_codebook_is_readable(demo):
    # Guards the tests above: a spoiled fixture would make every refusal look right.
    with safe_open(demo.codebook, framework="numpy") as file:
        assert np.isfinite(file.get_tensor("corners")).all()
