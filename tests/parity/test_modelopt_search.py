"""NVIDIA ModelOpt searches the scales of an engine, in an environment of its own."""

import sys
from pathlib import Path

import numpy as np
import pytest
from demo_engine import REPO

from autovla_rt.bundle import load_bundle
from autovla_rt.demo.world_engine import model_files
from autovla_rt.errors import CalibrationError, DependencyError
from autovla_rt.export.calibration.calibrated_weights import CalibratedWeights
from autovla_rt.export.calibration.groups import language_groups
from autovla_rt.export.calibration.modelopt import RELEASE, modelopt, modelopt_version
from autovla_rt.export.calibration.search import awq, balanced
from autovla_rt.export.calibration.statistics import read_statistics
from autovla_rt.export.open_model import open_model
from autovla_rt.export.weight_source import TEXT_HEAD

PYTHON = REPO / ".venv-modelopt" / "bin" / "python"
EXPONENTS = np.arange(0, 1.05, 0.1)
needs_modelopt = pytest.mark.skipif(
    not PYTHON.exists(), reason=f"{PYTHON} is missing: make .venv-modelopt/stamp"
)


@pytest.fixture(scope="module")
def model(demo):
    opened = open_model(model_files(demo.base.parent))
    yield opened
    opened.checkpoint.close()


def group_of(model, reader):
    groups = language_groups(model.geometry.language)
    return next(group for group in groups if reader in group.readers)


@needs_modelopt
@pytest.mark.parametrize("precision", ["int8_sq", "int4_awq"])
def test_a_bundle_says_that_modelopt_searched_and_plans(
    demo, invoke, tmp_path, calibration, precision, monkeypatch
):
    out = tmp_path / "engine"
    size = ("--frame-size", "392x224")
    chosen = ("--precision", f"fp32/{precision}", "--calibration", calibration, *size)
    options = (*demo.build_options, *chosen, "--modelopt", PYTHON, "--out", out)
    # As from a user's shell: the tests' own is set up so that a script's folder is not imported.
    monkeypatch.delenv("PYTHONSAFEPATH", raising=False)
    monkeypatch.setenv("PYTHONPATH", str(REPO))
    code, _, said = invoke("build", *options)
    assert code == 0, said
    assert load_bundle(out).manifest.calibration.modelopt == modelopt_version(PYTHON)
    assert f"scales by ModelOpt {modelopt_version(PYTHON)}" in " ".join(
        invoke("inspect", out)[1].replace("│", " ").split()
    )
    plan = invoke.json("plan", "--frames", REPO / "calib_data/demo", "--engine", out, "--json")
    assert plan["status"] == "ok"


@needs_modelopt
def test_its_scales_are_folded_and_nothing_is_clipped(model, calibration):
    group = group_of(model, "model.layers.1.mlp.down_proj")
    (site,) = group.readers
    seen = read_statistics(calibration / f"{group.step}.safetensors")[site]
    plain = model.weights()
    weights = CalibratedWeights(plain, [group], calibration, lambda _: "int4_awq", 128)
    with modelopt(PYTHON, 128) as running:
        weights.fit(plain, lambda _: None, running)
    method, matrix = awq(128), plain.rows(f"{site}.weight", 0, 256)
    column = method.sizes(matrix).mean(axis=0)
    candidates = [
        balanced(method.scales(seen.largest, seen.mean, column, exponent)[1])
        for exponent in EXPONENTS
    ]
    # ModelOpt takes means of the rows that are kept, the calibration those of all rows.
    means = np.abs(seen.rows).mean(axis=0)
    candidates += [
        balanced(method.scales(seen.largest, means, column, exponent)[1]) for exponent in EXPONENTS
    ]
    scale = weights.read_scale(site)
    assert min(np.abs(scale / of - 1).max() for of in candidates) < 1e-3
    rows = weights.rows(f"{site}.weight", 0, 16)
    np.testing.assert_array_equal(rows, plain.rows(f"{site}.weight", 0, 16) * scale)


@needs_modelopt
def test_layers_that_read_one_value_get_one_scale(model, calibration):
    group = group_of(model, "model.layers.0.self_attn.k_proj")
    seen = read_statistics(calibration / f"{group.step}.safetensors")[group.readers[0]]
    with modelopt(PYTHON, 128) as running:
        scale = running.rescaling(model.weights(), group, seen, "int8_sq")
    # ModelOpt's SmoothQuant has the exponent 1: a channel's largest input alone.
    np.testing.assert_allclose(scale, balanced(seen.largest), rtol=1e-3)


@needs_modelopt
def test_heads_are_searched_here(model, calibration):
    group = group_of(model, TEXT_HEAD)
    plain = model.weights()
    weights, again = (
        CalibratedWeights(plain, [group], calibration, lambda _: "int8_sq", 128) for _ in range(2)
    )
    with modelopt(PYTHON, 128) as running:
        weights.fit(plain, lambda _: None, running)
    again.fit(plain, lambda _: None)
    np.testing.assert_array_equal(weights.read_scale(TEXT_HEAD), again.read_scale(TEXT_HEAD))


@needs_modelopt
def test_a_modelopt_that_ends_early_is_told_with_what_it_said(model, calibration):
    group = group_of(model, "model.layers.0.mlp.down_proj")
    seen = read_statistics(calibration / f"{group.step}.safetensors")[group.readers[0]]
    with modelopt(PYTHON, 128) as running, pytest.raises(CalibrationError) as raised:
        running.rescaling(model.weights(), group, seen, "int3")
    assert "int3" in str(raised.value)
    assert "down_proj" in str(raised.value)


@pytest.mark.parametrize("python", [sys.executable, "/nowhere/python"])
def test_a_python_without_it_is_refused_before_any_work(
    demo, invoke, tmp_path, calibration, python
):
    out = tmp_path / "engine"
    options = ("--precision", "int4_awq", "--calibration", calibration, "--modelopt", python)
    code, _, said = invoke("build", *demo.build_options, *options, "--out", out)
    assert code == DependencyError.exit_code
    assert python in said
    assert f"nvidia-modelopt {RELEASE}" in said
    assert not out.exists()


def test_it_has_nothing_to_search_in_a_precision_that_only_rounds(demo, invoke, tmp_path):
    out = tmp_path / "engine"
    code, _, said = invoke(
        "build", *demo.build_options, "--precision", "int8", "--modelopt", Path("x"), "--out", out
    )
    assert code == 8
    assert "int8_sq, int4_awq" in said
