"""Calibrated scales and integers are NVIDIA ModelOpt's, layer by layer, at its own exponents.

ModelOpt runs in an environment of its own (make .venv-modelopt/stamp). It fixes SmoothQuant's
exponent at 1 and searches AWQ's in steps of 0.1, layer by layer; here both are searched for all
layers that read one value. int4's integers are compared in test_unified_modelopt.py: as in unified
checkpoints, ModelOpt maps a block's largest weight to 7; ONNX Runtime's format (and OpenVINO's,
here) maps it to -8.
"""

import subprocess
from pathlib import Path

import numpy as np
import pytest
from demo_engine import REPO

from autovla_rt.export.calibration.groups import language_groups, vision_groups
from autovla_rt.export.calibration.search import awq, balanced, smooth_quant
from autovla_rt.export.calibration.statistics import LayerInput
from autovla_rt.export.open_model import open_model
from autovla_rt.export.quantize import int8_per_channel

PYTHON = REPO / ".venv-modelopt" / "bin" / "python"
BLOCK = 128
EXPONENTS = np.arange(0, 1.05, 0.1)


@pytest.fixture(scope="module")
def layers(demo):
    """Weights of every layer that is rescaled, and inputs with outliers, as ModelOpt gets them."""
    if not PYTHON.exists():
        pytest.skip(f"{PYTHON} is missing: make .venv-modelopt/stamp")
    from autovla_rt.demo.world_engine import model_files

    model = open_model(model_files(demo.base.parent))
    weights, geometry, rng = model.weights(), model.geometry, np.random.default_rng(0)
    found = {}
    for group in (*vision_groups(geometry.vision), *language_groups(geometry.language)):
        rows = rng.standard_normal((64, len(group.channels))).astype(np.float32)
        rows[:, rng.choice(rows.shape[1], 3, replace=False)] *= 40
        for reader in group.readers:
            name = f"{reader}.weight"
            matrix = weights.rows(name, 0, min(weights.shape(name)[0], 512))
            found[reader] = matrix.reshape(len(matrix), -1), rows  # the patches' is a kernel
    model.checkpoint.close()
    return found


@pytest.fixture(scope="module")
def theirs(layers, tmp_path_factory):
    folder = tmp_path_factory.mktemp("modelopt")
    given = {}
    for name, (weight, rows) in layers.items():
        given |= {f"{name}.weight": weight, f"{name}.rows": rows}
    np.savez(folder / "in.npz", **given)
    script = Path(__file__).with_name("modelopt_layers.py")
    command = [PYTHON, script, folder / "in.npz", folder / "out.npz"]
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    return np.load(folder / "out.npz")


def sizes(rows):
    magnitudes = np.abs(rows)
    return LayerInput(magnitudes.max(axis=0), magnitudes.mean(axis=0), rows)


def test_smooth_quants_scales_and_integers(layers, theirs):
    method = smooth_quant()
    assert len(layers) > 40
    for name, (weight, rows) in layers.items():
        seen = sizes(rows)
        column = np.abs(weight).max(axis=0)
        (scale,) = method.scales(seen.largest, seen.mean, column, 1.0)
        np.testing.assert_allclose(theirs[f"{name}.smooth"], scale, rtol=1e-3, err_msg=name)
        codes, scales = int8_per_channel(weight * scale)
        np.testing.assert_allclose(theirs[f"{name}.scale"], scales, rtol=1e-3, err_msg=name)
        off = np.abs(codes.astype(int) - theirs[f"{name}.codes"])
        assert off.max() <= 1, name
        assert (off > 0).mean() <= 1e-3, name


def test_awqs_scales_at_the_exponent_that_it_chose(layers, theirs):
    method = awq(BLOCK)
    for name, (weight, rows) in layers.items():
        seen = sizes(rows)
        padded = np.pad(weight, ((0, 0), (0, -weight.shape[1] % BLOCK)))
        column = method.sizes(padded).mean(axis=0)[: weight.shape[1]]
        candidates = [
            balanced(method.scales(seen.largest, seen.mean, column, exponent)[1])
            for exponent in EXPONENTS
        ]
        off = [np.abs(theirs[f"{name}.awq"] / scale - 1).max() for scale in candidates]
        assert min(off) < 1e-3, name
