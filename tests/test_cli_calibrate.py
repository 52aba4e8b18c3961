"""Calibrate on official scenes and build with it, as a user would."""

import json
import shutil

import numpy as np
import pytest
from demo_engine import REPO

from autovla_rt.bundle import load_bundle
from autovla_rt.calibration_scenes import (
    ACTION_WEIGHT,
    DECISION_WEIGHT,
    SampleReader,
    find_scenes,
)
from autovla_rt.config import CAMERAS
from autovla_rt.demo.world_engine import model_files
from autovla_rt.errors import CalibrationError
from autovla_rt.export.build import camera_layout, engine_prompt
from autovla_rt.export.calibration.record import RECORD
from autovla_rt.export.calibration.statistics import read_statistics
from autovla_rt.export.open_model import open_model
from autovla_rt.export.settings import Settings

MINIATURE = REPO / "calib_data" / "miniature"
SCENES, SENSORS = MINIATURE / "scenes", MINIATURE / "sensors"
SIZE = ("--frame-size", "392x224")


def given(scenes=SCENES):
    return ["--scenes", scenes, "--sensor-root", SENSORS, *SIZE]


@pytest.fixture
def opened(demo):
    model = open_model(model_files(demo.base.parent))
    yield model
    model.checkpoint.close()


def reader(model):
    settings = Settings("x", frame_sizes=dict.fromkeys(CAMERAS, (392, 224)))
    cameras = camera_layout(model, settings)
    return SampleReader(model, cameras, engine_prompt(model, cameras))


@pytest.mark.parametrize("precision", ["int8_sq", "int4_awq"])
@pytest.mark.parametrize("target", ["cpu", "x86"])
def test_a_calibrated_engine_plans_and_says_what_it_was_fitted_to(
    demo, invoke, tmp_path, calibration, precision, target
):
    out = tmp_path / "engine"
    chosen = ["--precision", precision, "--calibration", calibration, "--target", target, *SIZE]
    code, _, said = invoke("build", *demo.build_options, *chosen, "--out", out)
    assert code == 0, said
    used = load_bundle(out).manifest.calibration
    record = json.loads((calibration / "calibration.json").read_text())
    assert (used.scenes, used.scenes_sha256) == (8, record["scenes_sha256"])
    assert used.precision == f"int8_sq/{precision}"
    plan = invoke.json("plan", "--frames", REPO / "calib_data/demo", "--engine", out, "--json")
    assert plan["status"] == "ok"
    assert "int8_sq" in invoke("inspect", out)[1]


def test_the_same_scenes_give_the_same_calibration(demo, invoke, tmp_path, calibration):
    out = tmp_path / "again"
    code, _, said = invoke("calibrate", *demo.build_options, *given(), "--count", 8, "--out", out)
    assert code == 0, said
    assert (out / RECORD).read_bytes() == (calibration / RECORD).read_bytes()
    assert {path.name for path in out.iterdir()} == {path.name for path in calibration.iterdir()}
    for path in calibration.glob("*.safetensors"):
        other = read_statistics(out / path.name)
        for layer, of in read_statistics(path).items():  # another number of threads may round
            np.testing.assert_allclose(other[layer].largest, of.largest, rtol=1e-4)
            np.testing.assert_allclose(other[layer].rows, of.rows, atol=1e-3 * of.largest.max())


def test_other_seeds_draw_other_scenes():
    draws = {tuple(find_scenes(SCENES, 8, seed)) for seed in range(5)}
    assert len(draws) == 5
    assert all(list(draw) == sorted(draw) for draw in draws)


def test_both_modes_are_taught_and_actions_and_decision_weigh_more(opened):
    samples = reader(opened).read(sorted(SCENES.glob("*.json")), SENSORS)
    fast, slow = next(sample.answers for sample in samples if len(sample.answers) == 2)
    actions = opened.actions
    for sequence in (fast, slow):
        taught = np.append(sequence.ids[1:], -1)
        assert (sequence.weights[taught >= actions.action_start_id] == ACTION_WEIGHT).all()
        assert (sequence.ids >= actions.action_start_id).sum() == actions.num_poses
        heavy = (sequence.weights == ACTION_WEIGHT).sum()
        assert ACTION_WEIGHT == DECISION_WEIGHT
        assert heavy == actions.num_poses + 1
    (decision,) = np.flatnonzero(
        (fast.weights == DECISION_WEIGHT) & (np.append(fast.ids[1:], -1) < actions.action_start_id)
    )
    np.testing.assert_array_equal(fast.ids[: decision + 1], slow.ids[: decision + 1])
    assert fast.ids[decision + 1] != slow.ids[decision + 1]
    assert len(slow.ids) > len(fast.ids)


def test_a_scene_without_reasoning_has_the_fast_answer_alone(opened):
    samples = reader(opened).read(sorted(SCENES.glob("*.json")), SENSORS)
    reasoned = {
        path.stem for path in SCENES.glob("*.json") if json.loads(path.read_text())["cot_output"]
    }
    assert 0 < len(reasoned) < 16
    for sample in samples:
        assert len(sample.answers) == (2 if sample.token in reasoned else 1)


@pytest.mark.parametrize("count", [3, 17])
def test_too_few_scenes_are_refused(demo, invoke, tmp_path, count):
    said = invoke.refused(
        14, "calibrate", *demo.build_options, *given(), "--count", count, "--out", tmp_path / "c"
    )
    assert "got 16 and --count" in said
    assert not (tmp_path / "c").exists()


def test_scenes_without_any_reasoning_are_refused_for_a_model_that_reasons(demo, invoke, tmp_path):
    folder = edited(tmp_path, cot_output="")
    said = invoke.refused(
        14, "calibrate", *demo.build_options, *given(folder), "--count", 16, "--out", tmp_path / "c"
    )
    assert "expected some with reasoning (cot_output)" in said


def test_a_scene_without_a_trajectory_is_refused_by_name(demo, invoke, tmp_path):
    folder = edited(tmp_path, gt_trajectory=None)
    said = invoke.refused(
        14, "calibrate", *demo.build_options, *given(folder), "--count", 16, "--out", tmp_path / "c"
    )
    assert "miniature-2600000000.json: expected gt_trajectory" in said


def test_reasoning_that_is_no_text_is_refused(demo, invoke, tmp_path):
    folder = edited(tmp_path, cot_output=[1, 2])
    said = invoke.refused(
        3, "calibrate", *demo.build_options, *given(folder), "--count", 16, "--out", tmp_path / "c"
    )
    assert "cot_output: expected a text or a list of texts" in said


def edited(tmp_path, **changes):
    folder = tmp_path / "scenes"
    shutil.copytree(SCENES, folder)
    for path in folder.glob("*.json"):
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    return folder


def test_a_calibrated_precision_needs_a_calibration(demo, invoke, tmp_path):
    options = [*demo.build_options, "--out", tmp_path / "e"]
    said = invoke.refused(8, "build", *options, "--precision", "int8_sq")
    assert "precision int8_sq: expected --calibration" in said
    said = invoke.refused(8, "build", *options, "--precision", "int8", "--calibration", tmp_path)
    assert "precision int8: expected no --calibration" in said
    said = invoke.refused(
        14, "build", *options, *SIZE, "--precision", "int8_sq", "--calibration", tmp_path
    )
    assert "calibration.json: expected the record of a finished calibration" in said
    assert not (tmp_path / "e").exists()


@pytest.mark.parametrize("command", ["build", "export"])
def test_a_calibration_of_another_checkpoint_is_refused(
    demo, invoke, tmp_path, calibration, command
):
    other = tmp_path / "other"
    shutil.copytree(calibration, other)
    record = json.loads((other / "calibration.json").read_text())
    record["checkpoint"] = "0" * 64
    (other / "calibration.json").write_text(json.dumps(record))
    words = [command, *(["all"] if command == "export" else []), *demo.build_options, *SIZE]
    chosen = ["--precision", "int8_sq", "--calibration", other, "--out", tmp_path / "e"]
    said = invoke.refused(14, *words, *chosen)
    assert "expected a calibration of the checkpoint with sha256" in said
    assert not (tmp_path / "e").exists()


def test_a_calibration_with_other_frames_is_refused(demo, invoke, tmp_path, calibration):
    chosen = ["--precision", "int8_sq", "--calibration", calibration, "--frame-size", "640x640"]
    said = invoke.refused(14, "build", *demo.build_options, *chosen, "--out", tmp_path / "e")
    assert "Calibrate with the same --frame-size" in said


def test_fewest_scenes_are_required_of_a_library_caller(tmp_path):
    with pytest.raises(CalibrationError, match="at least 4"):
        find_scenes(tmp_path, 8, 0)
