"""`export` for NVIDIA targets, as a user would, and what it refuses before any work."""

import json
from dataclasses import replace

import numpy as np
import onnx
import pytest
from demo_engine import REPO

from autovla_rt.config import SPARE_POSITIONS
from autovla_rt.export.targets import TARGETS

SIZE = ("--frame-size", "392x224")
MINIATURE = REPO / "calib_data" / "miniature"


@pytest.fixture(scope="module")
def calibration(demo, tmp_path_factory):
    from demo_engine import run

    out = tmp_path_factory.mktemp("calibrated") / "calibration"
    scenes = "--scenes", MINIATURE / "scenes", "--sensor-root", MINIATURE / "sensors"
    words = [*demo.build_options, *scenes, *SIZE, "--count", "4", "--out", out]
    done = run("calibrate", *words, cache=out.parent)
    assert done.returncode == 0, done.stderr
    return out


def test_graphs_heads_embeddings_and_tables_are_written(demo, invoke, tmp_path):
    out = tmp_path / "onnx"
    chosen = ["--target", "agx-orin-64", "--precision", "fp16", "--kv-capacity", "1024"]
    code, _, said = invoke("export", "all", *demo.build_options, *SIZE, *chosen, "--out", out)
    assert code == 0, said
    files = {path.name for path in out.iterdir()}
    parts = ("language", "text_head")
    graphs = {f"{part}.{suffix}" for part in parts for suffix in ("onnx", "bin")}
    tables = {"action_head.safetensors", "choice_head.safetensors", "rotary.safetensors"}
    assert files == {"vision_8x14.onnx", "vision.bin", "embeddings.npy", *graphs, *tables}
    assert np.load(out / "embeddings.npy", mmap_mode="r").dtype == np.float16
    graph = onnx.load(out / "language.onnx", load_external_data=False).graph
    shapes = {of.name: [d.dim_value for d in of.type.tensor_type.shape.dim] for of in graph.input}
    assert shapes["past_key_values.0.key"] == [1, 2, 1024, 64]
    assert shapes["cos_cache"] == [1024 + SPARE_POSITIONS, 32]


@pytest.mark.parametrize(
    ("target", "precision", "operators"),
    [
        ("rtx-sm86", "int8_sq", {"QuantizeLinear", "DequantizeLinear"}),
        ("rtx-sm86", "int8", {"QuantizeLinear", "DequantizeLinear"}),
        ("rtx-sm86", "int4_awq", {"DequantizeLinear"}),
        ("rtx-sm89", "fp8", {"QuantizeLinear", "DequantizeLinear"}),
    ],
)
def test_calibrated_precisions(demo, invoke, tmp_path, calibration, target, precision, operators):
    out = tmp_path / "onnx"
    chosen = ["--target", target, "--precision", precision, "--calibration", calibration]
    chosen += ["--int4-block", "64"]
    code, _, said = invoke("export", "language", *demo.build_options, *SIZE, *chosen, "--out", out)
    assert code == 0, said
    graph = onnx.load(out / "language.onnx", load_external_data=False).graph
    found = {node.op_type for node in graph.node}
    assert found & {"QuantizeLinear", "DequantizeLinear"} == operators
    calibrated = json.loads((calibration / "calibration.json").read_text())
    assert len(calibrated["scenes"]) == 4


@pytest.mark.parametrize("precision", ["int8", "int4", "fp8", "int8_wo,mlp=fp8"])
def test_static_scales_need_a_calibration(demo, invoke, tmp_path, precision):
    options = [*demo.build_options, "--target", "rtx-sm89", "--precision", precision]
    said = invoke.refused(8, "export", "all", *options, "--out", tmp_path / "o")
    assert "expected --calibration" in said
    assert "or choose fp16, int8_wo." in said
    assert "opening" not in said
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize("precision", ["fp16", "int8_wo"])
def test_a_calibration_is_never_without_use(demo, invoke, tmp_path, precision, calibration):
    """float16 values are held against it (tests/test_cli_audit.py)."""
    chosen = ["--target", "rtx-sm86", "--precision", precision, "--calibration", calibration]
    words = [*demo.build_options, *SIZE, *chosen]
    code, _, said = invoke("export", "vision", *words, "--out", tmp_path / "o")
    assert code == 0, said


@pytest.mark.parametrize("precision", ["fp32", "fp32/fp16", "fp16/fp32"])
def test_float32_is_for_single_layers_of_float16_graphs(demo, invoke, tmp_path, precision):
    options = [*demo.build_options, "--target", "rtx-sm86", "--precision", precision]
    said = invoke.refused(8, "export", "all", *options, "--out", tmp_path / "o")
    assert "precision 'fp32' on rtx-sm86" in said


@pytest.mark.parametrize(
    ("precision", "message"),
    [
        ("fp8", "expected one of fp16, int8, int8_sq, int8_wo, int4, int4_awq"),
        ("fp32", "expected one of fp16, int8"),
        ("int4/int4", "expected fp16, int8, int8_wo, int8_sq for the vision tower"),
        ("fp16,kv=int8", "expected keys and values (kv) in auto on agx-orin-64, got 'int8'"),
    ],
)
def test_what_orin_or_the_dialect_has_not_is_refused(demo, invoke, tmp_path, precision, message):
    options = [*demo.build_options, "--target", "agx-orin-64", "--precision", precision]
    assert message in invoke.refused(8, "export", "all", *options, "--out", tmp_path / "o")


def test_a_legal_precision_that_the_dialect_has_not_is_refused(demo, invoke, tmp_path):
    options = [*demo.build_options, "--target", "rtx-sm120", "--precision", "fp16/nvfp4"]
    said = invoke.refused(8, "export", "all", *options, "--out", tmp_path / "o")
    assert "'nvfp4' is legal on rtx-sm120, but cannot be exported by this version" in said


def test_a_gpus_bundle_is_not_judged_where_it_cannot_run(demo, invoke, tmp_path):
    options = [*demo.build_options, "--target", "agx-orin-64", "--precision", "fp16"]
    scenes = ("--scenes", tmp_path, "--sensor-root", tmp_path)
    said = invoke.refused(8, "build", *options, *scenes, "--out", tmp_path / "e")
    assert "autovla-rt compile, then autovla-rt eval" in said
    assert "--target cpu-standard" in said


def test_a_target_has_a_default_precision(demo, invoke, tmp_path):
    options = [*demo.build_options, "--target", "agx-orin-64", "--out", tmp_path / "o"]
    said = invoke.refused(8, "export", "all", *options)
    assert "precision fp16/int4_awq: expected --calibration" in said
    said = invoke.refused(8, "export", "checkpoint", *options)
    assert "precision fp16/int4_awq: expected --calibration" in said


@pytest.mark.parametrize(
    "command",
    ["export vision", "export language", "export all", "export checkpoint", "build"],
)
def test_an_engine_without_room_on_the_target_is_refused_before_work(
    demo, invoke, tmp_path, monkeypatch, command
):
    monkeypatch.setitem(TARGETS, "orin-nano-8", replace(TARGETS["orin-nano-8"], memory_gib=2))
    options = [*demo.build_options, *SIZE, "--target", "orin-nano-8", "--precision", "fp16"]
    said = invoke.refused(8, *command.split(), *options, "--out", tmp_path / "o")
    assert "precision fp16 on orin-nano-8: expected an engine of at most 1.0 GiB" in said
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize("part", ["checkpoint", "edgellm", "trtllm"])
def test_a_version_of_tensorrt_goes_with_graphs(demo, invoke, tmp_path, part):
    options = [*demo.build_options, "--target", "agx-orin-64", "--tensorrt", "10.3"]
    assert "goes with vision, language and all" in invoke.refused(
        2, "export", part, *options, "--out", tmp_path / "o"
    )


def test_what_an_engine_takes_is_told(demo, invoke, tmp_path):
    options = [*demo.build_options, *SIZE, "--target", "orin-nano-8", "--precision", "fp16"]
    code, _, said = invoke("export", "vision", *options, "--out", tmp_path / "o")
    assert code == 0, said
    assert "memory on orin-nano-8: about 1.0 of 8 GiB; where it is compiled:" in said
    assert "swap" not in said
