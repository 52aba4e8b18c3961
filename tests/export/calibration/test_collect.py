"""A calibration goes on where it was interrupted, and is of one checkpoint and one set alone."""

import numpy as np
import pytest
from demo_engine import contents
from random_calibration import CAMERAS, plan, samples

from autovla_rt.config import CompiledPrompt
from autovla_rt.errors import CalibrationError
from autovla_rt.export.calibration import collect as collect_module
from autovla_rt.export.calibration.collect import collect, step_names
from autovla_rt.export.calibration.record import (
    RECORD,
    read_record,
    require_fitting,
)
from autovla_rt.export.calibration.statistics import read_magnitudes, read_statistics
from autovla_rt.export.progress import NoProgress

KINDS = ("input", "output")


class StoppedError(Exception):
    """Somebody pressed a key."""


class StopAfter(NoProgress):
    """Progress that ends a run after so many units."""

    def __init__(self, units):
        self.left = units

    def advance(self, elements):
        self.left -= elements
        if self.left < 0:
            raise StoppedError


@pytest.fixture(scope="module")
def whole(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("calibration") / "whole"
    given = samples(model)
    collect(plan(model, given), given, folder, NoProgress())
    return folder


def test_every_step_and_the_record_are_written_and_nothing_else(model, whole):
    files = {f"{name}.safetensors" for name in step_names(model.geometry)}
    assert set(contents(whole)) == files | {RECORD}
    assert read_record(whole).scenes == tuple(f"scene-{number}" for number in range(5))
    layer = read_statistics(whole / "model.layers.0.safetensors")
    seen = ("q_proj", "o_proj", "keys", "values")
    seen = [*(f"self_attn.{name}" for name in seen), "mlp.gate_proj", "mlp.down_proj"]
    assert set(layer) == {f"model.layers.0.{name}" for name in seen}
    last = read_statistics(whole / f"model.layers.{len(files) - 7}.safetensors")
    assert "text_head" in last


def test_all_that_float16_graphs_hold_is_measured(whole):
    block, layer = "visual.blocks.0", "model.layers.0"
    mlp = [f"mlp.{name}_proj.{kind}" for name in ("gate", "up", "down") for kind in KINDS]
    norms = ["input_layernorm", "post_attention_layernorm"]
    seen = read_magnitudes(whole / f"{block}.safetensors")
    attention = [f"attn.qkv.{kind}" for kind in (*KINDS, "rotated", "scores")]
    own = {*attention, *(f"attn.proj.{kind}" for kind in KINDS), *mlp, "norm2.sum"}
    assert set(seen) == {*(f"{block}.{name}" for name in own), "visual.blocks.1.norm1.sum"}
    seen = read_magnitudes(whole / f"{layer}.safetensors")
    attention = [f"self_attn.q_proj.{kind}" for kind in ("input", "rotated", "scores")]
    attention += [f"self_attn.{name}_proj.output" for name in "qkvo"]
    own = {*attention, "self_attn.o_proj.input", *mlp, f"{norms[1]}.sum"}
    assert set(seen) == {*(f"{layer}.{n}" for n in own), f"model.layers.1.{norms[0]}.sum"}


def test_what_is_measured_is_as_large_as_what_is_observed(whole):
    """Inputs and rotated keys are known in two ways."""
    path = whole / "model.layers.0.safetensors"
    observed, measured = read_statistics(path), read_magnitudes(path)
    attention = "model.layers.0.self_attn"
    keys = observed[f"{attention}.keys"].largest
    np.testing.assert_array_equal(measured[f"{attention}.q_proj.rotated"][-len(keys) :], keys)
    values = observed[f"{attention}.values"].largest
    np.testing.assert_array_equal(measured[f"{attention}.v_proj.output"], values)
    for name in ("self_attn.q_proj", "self_attn.o_proj", "mlp.down_proj"):
        inputs = observed[f"model.layers.0.{name}"].largest
        np.testing.assert_array_equal(measured[f"model.layers.0.{name}.input"], inputs)


@pytest.mark.parametrize("units", [0, 1, 4, 7, 20])
def test_an_interrupted_run_goes_on_to_the_same_end(model, whole, tmp_path, units):
    given = samples(model)
    with pytest.raises(StoppedError):
        collect(plan(model, given), given, tmp_path / "c", StopAfter(units))
    with pytest.raises(CalibrationError, match="interrupted"):
        read_record(tmp_path / "c")
    collect(plan(model, given), given, tmp_path / "c", NoProgress())
    assert contents(tmp_path / "c") == contents(whole)


def test_what_was_done_is_not_done_again(model, tmp_path, monkeypatch):
    given = samples(model)
    with pytest.raises(StoppedError):
        collect(plan(model, given), given, tmp_path / "c", StopAfter(3 * 3))
    steps = []
    advance = collect_module._advance

    def noted(of, step, *rest):
        steps.append(step)
        return advance(of, step, *rest)

    monkeypatch.setattr(collect_module, "_advance", noted)
    collect(plan(model, given), given, tmp_path / "c", NoProgress())
    assert list(dict.fromkeys(steps)) == step_names(model.geometry)[3:]


@pytest.mark.parametrize("changed", ["scenes", "checkpoint"])
def test_an_interrupted_run_of_something_else_is_refused(model, tmp_path, changed):
    given = samples(model)
    with pytest.raises(StoppedError):
        collect(plan(model, given), given, tmp_path / "c", StopAfter(4))
    before = contents(tmp_path / "c")
    other = samples(model, seed=1) if changed == "scenes" else given
    checkpoint = "b" if changed == "checkpoint" else "a"
    with pytest.raises(CalibrationError, match="another checkpoint, other scenes"):
        collect(plan(model, other, checkpoint), other, tmp_path / "c", NoProgress())
    assert contents(tmp_path / "c") == before


def test_a_folder_of_something_else_is_not_touched(model, whole, tmp_path):
    given = samples(model)
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(CalibrationError, match="expected a new or empty folder"):
        collect(plan(model, given), given, tmp_path, NoProgress())
    with pytest.raises(CalibrationError, match="expected a new or empty folder"):
        collect(plan(model, given), given, whole, NoProgress())


def test_batches_change_nothing_but_the_order(model, whole, tmp_path, monkeypatch):
    monkeypatch.setattr(collect_module, "BATCH", 5)
    given = samples(model)
    collect(plan(model, given), given, tmp_path / "c", NoProgress())
    for name in step_names(model.geometry):
        one = read_statistics(whole / f"{name}.safetensors")
        other = read_statistics(tmp_path / "c" / f"{name}.safetensors")
        for site, of in one.items():
            np.testing.assert_allclose(of.largest, other[site].largest, rtol=1e-4)
            np.testing.assert_allclose(of.mean, other[site].mean, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"checkpoint": "b"},
            "of the checkpoint with sha256 b, got one of a",
        ),
        ({"cameras": CAMERAS[:1]}, r"front \(2, 4, 8\), got front \(2, 4, 8\), front_left"),
        ({"prompt": CompiledPrompt(prefix_ids=(1,), videos=(), tail=())}, "another recipe"),
    ],
)
def test_a_calibration_of_something_else_is_not_built_with(whole, changes, said):
    record = read_record(whole)
    fitting = {"checkpoint": "a", "cameras": record.cameras, "prompt": record.prompt}
    require_fitting(record, whole, **fitting)
    with pytest.raises(CalibrationError, match=said):
        require_fitting(record, whole, **{**fitting, **changes})


def test_a_record_of_another_version_is_refused(whole, tmp_path):
    record = read_record(whole).model_copy(update={"format_version": 9})
    (tmp_path / RECORD).write_text(record.model_dump_json())
    with pytest.raises(CalibrationError, match="expected format version 3, got 9"):
        read_record(tmp_path)
