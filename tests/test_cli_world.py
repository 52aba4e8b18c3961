"""The commands `drive` and `scenes`, as a user calls them."""

import json

import pytest
from demo_engine import REPO, run
from PIL import Image

from autovla_rt.cli_world import Event, require_world_layout
from autovla_rt.demo.events import EVENTS
from autovla_rt.errors import LayoutError
from autovla_rt.runtime.planner import Planner

LAYOUT, INPUT, USAGE = 12, 3, 2


@pytest.fixture(scope="session")
def driven(demo, tmp_path_factory):
    out = tmp_path_factory.mktemp("driven")
    words = ("drive", "--engine", demo.engine, "--seed", 8, "--seconds", 3, "--latency-ms", 100)
    done = run(*words, "--out", out, "--film", cache=out)
    assert done.returncode == 0, done.stderr
    return out, done


def test_a_drive_writes_its_score_and_pictures(driven, demo):
    out, done = driven
    record = json.loads((out / "drive.json").read_text())
    assert record["plans"] == len(record["ticks"]) == 6
    assert record["engine"]["name"] == demo.engine.name
    assert {tick["latency_ms"] for tick in record["ticks"]} == {100.0}
    assert all(tick["mode"] in ("fast", "slow") for tick in record["ticks"])
    assert all(len(tick["trajectory"]) == 10 for tick in record["ticks"])
    assert 0 <= record["score"]["score"] <= 1
    assert f"{record['score']['score']:.3f}" in done.stdout
    with Image.open(out / "drive.jpg") as sheet, Image.open(out / "drive.webp") as film:
        assert sheet.width == film.width
        assert film.n_frames == 6


def test_the_same_seed_drives_the_same_way(driven, demo, invoke, tmp_path):
    words = ("drive", "--engine", demo.engine, "--seed", 8, "--seconds", 3, "--latency-ms", 100)
    record = invoke.json(*words, "--out", tmp_path, "--json")
    before = json.loads((driven[0] / "drive.json").read_text())
    assert record["score"] == before["score"]
    assert [t["trajectory"] for t in record["ticks"]] == [t["trajectory"] for t in before["ticks"]]


def test_other_drivers_need_no_engine(invoke, tmp_path):
    for driver in ("expert", "constant-velocity"):
        words = ("drive", "--driver", driver, "--seconds", 2, "--out", tmp_path / driver)
        record = invoke.json(*words, "--engine", "no-such-engine", "--json")
        assert record["engine"] is None
        assert record["slow_share"] is None


def test_an_engine_for_another_camera_layout_is_refused(demo, invoke, tmp_path):
    other = tmp_path / "other"
    code, _, err = invoke(
        "build", *demo.build_options, "--frame-size", "392x224", "--frame-size", "front=640x640",
        "--out", other,
    )  # fmt: skip
    assert code == 0, err
    message = invoke.refused(LAYOUT, "drive", "--engine", other, "--out", tmp_path / "drive")
    assert "three of 392x224 pixels (grid (2, 8, 14))" in message
    assert "front (2, 10, 10)" in message
    assert "--frame-size 392x224" in message
    assert not (tmp_path / "drive").exists()


def test_an_engine_for_other_plans_is_refused(demo):
    planner = Planner.load(demo.engine)
    manifest = planner.bundle.manifest
    actions = manifest.actions.model_copy(update={"num_poses": 8})
    object.__setattr__(planner.bundle, "manifest", manifest.model_copy(update={"actions": actions}))
    with pytest.raises(LayoutError, match=r"10 poses, 0\.5 s apart, got 8"):
        require_world_layout(planner)


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (("--replan-every", "0.25"), INPUT, "multiple of 0.1 s"),
        (("--replan-every", "0"), USAGE, "greater than or equal to 0.1"),
        (("--seconds", "3600"), USAGE, "less than or equal to 20"),
        (("--latency-ms", "-1"), USAGE, "greater than or equal to 0"),
        (("--driver", "nobody"), USAGE, "'expert'"),
        (("--engine", "no-such"), 7, "no-such"),
    ],
)
def test_unusable_options_are_refused(invoke, tmp_path, words, code, says):
    message = invoke.refused(code, "drive", "--out", tmp_path / "out", *words)
    assert says in message
    assert not (tmp_path / "out").exists()


def test_scenes_are_written_and_planned(demo, invoke, tmp_path):
    code, out, err = invoke("scenes", tmp_path, "--count", 2, "--seed", 70, "--event", "light")
    assert (code, out) == (0, "")
    assert "2 scenes" in err
    scene = tmp_path / "scenes" / "miniature-0000000071-light.json"
    words = ("--scene", scene, "--sensor-root", tmp_path / "sensors")
    assert len(invoke.json("plan", *words, "--engine", demo.engine, "--json")["trajectory"]) == 10


def test_scenes_need_a_folder(invoke, tmp_path):
    (tmp_path / "file").write_text("x")
    message = invoke.refused(10, "scenes", tmp_path / "file", "--count", 1)
    assert "cannot be made a folder" in message


def test_a_drive_needs_a_folder_before_it_starts(invoke, tmp_path):
    (tmp_path / "file").write_text("x")
    words = ("--driver", "expert", "--out", tmp_path / "file")
    assert "cannot be made a folder" in invoke.refused(10, "drive", *words)


def test_the_tracked_scenes_are_what_the_command_writes(invoke, tmp_path):
    tracked = REPO / "calib_data" / "miniature"
    assert invoke("scenes", tmp_path, "--count", 1, "--seed", 2_600_000_000)[0] == 0
    name = "scenes/miniature-2600000000.json"
    assert (tmp_path / name).read_bytes() == (tracked / name).read_bytes()


def test_the_command_knows_every_event():
    assert [event.value for event in Event] == list(EVENTS)
