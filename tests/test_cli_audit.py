"""The float16 range audit as a user sees it, on a checkpoint with a planted outlier.

One MLP's up projection is multiplied and its down projection divided by as much: the same model,
but for what lies between them.
"""

import json
import shutil

from demo_engine import REPO, copy_checkpoint
from safetensors.numpy import load_file, save_file

from autovla_rt.export.calibration.record import RECORD

MINIATURE = REPO / "calib_data" / "miniature"
SIZE = ("--frame-size", "392x224")
MLP = "model.layers.2.mlp"
VALUE = f"{MLP}.down_proj.input"


def calibrated(demo, invoke, folder, factor=1):
    """Calibrate a copy of the demo checkpoint; returns it and the calibration."""
    copied = copy_checkpoint(demo, folder)
    path = copied.base / "model.safetensors"
    tensors = load_file(path)
    tensors[f"{MLP}.up_proj.weight"] *= factor
    tensors[f"{MLP}.down_proj.weight"] /= factor
    save_file(tensors, path)
    out = folder / "calibration"
    scenes = "--scenes", MINIATURE / "scenes", "--sensor-root", MINIATURE / "sensors"
    words = [*copied.build_options, *scenes, *SIZE, "--count", "4", "--out", out]
    code, _, said = invoke("calibrate", *words)
    assert code == 0, said
    return copied, out


def export(copied, calibration, out, precision="fp16"):
    chosen = ["--target", "rtx-sm86", "--precision", precision, "--calibration", calibration]
    return ["export", "all", *copied.build_options, *SIZE, *chosen, "--out", out]


def audited(invoke, calibration):
    found = invoke.json("audit", calibration, "--json")
    assert found["float16_max"] == 65504
    return {of["name"]: of for of in found["values"]}


def test_an_outlier_above_a_quarter_is_listed_and_warned_of(demo, invoke, tmp_path, caplog):
    copied, calibration = calibrated(demo, invoke, tmp_path, 256)
    values = audited(invoke, calibration)
    large = [of for of in values.values() if of["type"] == "float16" and of["share"] > 0.25]
    assert [of["name"] for of in large] == [VALUE]
    assert large[0]["what"] == "silu(gate) * up"
    assert 16_376 < large[0]["largest"] < 65_504
    code, said, _ = invoke("audit", calibration)
    assert code == 0
    assert "float16: 1 of 112 values above a quarter, 4 scenes" in said
    assert VALUE in said.splitlines()[4]
    code, _, said = invoke(*export(copied, calibration, tmp_path / "o"))
    assert code == 0, said
    (record,) = caplog.records
    assert record.getMessage().startswith(f"{VALUE} (silu(gate) * up): up to ")
    assert f"with {MLP}=fp32 behind --precision, as in fp16,{MLP}=fp32." in record.getMessage()


def test_an_outlier_beyond_float16_is_refused_and_float32_takes_it(demo, invoke, tmp_path):
    copied, calibration = calibrated(demo, invoke, tmp_path, 1024)
    said = invoke.refused(8, *export(copied, calibration, tmp_path / "o"))
    assert f"{VALUE} (silu(gate) * up): expected values up to 65504" in said
    assert not (tmp_path / "o").exists()
    widened = export(copied, calibration, tmp_path / "o", f"fp16,{MLP}=fp32")
    code, _, said = invoke(*widened)
    assert code == 0, said


def test_the_residual_stream_is_listed_as_float32(invoke, calibration):
    values = audited(invoke, calibration)
    streams = [of for of in values.values() if of["name"].endswith((".sum", ".square"))]
    assert {of["type"] for of in streams} == {"float32"}
    assert {of["reason"] for of in streams} == {
        "adds up over all layers",
        "the norm of it is computed in float32",
    }
    assert sum(of["name"].endswith(".sum") for of in streams) == 16


def test_values_are_in_the_models_order(invoke, calibration):
    steps = []
    for name in audited(invoke, calibration):
        step = ".".join(name.split(".")[: 2 if "merger" in name or "embed" in name else 3])
        if not steps or steps[-1] != step:
            steps.append(step)
    assert steps[0] == "visual.patch_embed"
    assert steps.index("visual.blocks.3") < steps.index("visual.merger")
    assert steps.index("visual.merger") < steps.index("model.layers.0")


def test_a_calibration_of_an_earlier_version_has_no_audit(invoke, tmp_path, calibration):
    other = tmp_path / "c"
    shutil.copytree(calibration, other)
    record = json.loads((other / RECORD).read_text())
    (other / RECORD).write_text(json.dumps({**record, "format_version": 2}))
    said = invoke.refused(14, "audit", other)
    assert "expected format version 3, got 2" in said
    assert "Calibrate again" in said
