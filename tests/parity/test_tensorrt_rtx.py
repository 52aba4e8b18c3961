"""NVIDIA's own parser and compiler take the `standard` dialect's graphs: RTX proxy builds.

TensorRT for RTX needs no GPU to compile, and runs in a process of its own. The plans are built, not
executed; it knows neither Orin (SM 8.7) nor Thor (SM 11.0).
"""

import json
import re
import shutil
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from compiled_graphs import COMPILED
from demo_engine import REPO, run
from random_checkpoint import GEOMETRY_3B

from autovla_rt.export.graph.dialect import Formats
from autovla_rt.export.graph.standard import StandardOps
from autovla_rt.export.graph.vision import vision_tower
from autovla_rt.export.passes.static_windows import static_windows
from autovla_rt.export.tensors.model_names import expected_shapes
from autovla_rt.export.weight_file import WeightFile

GRAPHS = ("vision_8x14.onnx", "language.onnx", "text_head.onnx")
UNCALIBRATED = ("fp16", "int8_wo")
SIZE = ("--frame-size", "392x224")
MINIATURE = REPO / "calib_data" / "miniature"


@pytest.fixture(scope="module")
def calibration(demo, tmp_path_factory):
    out = tmp_path_factory.mktemp("calibrated") / "calibration"
    scenes = "--scenes", MINIATURE / "scenes", "--sensor-root", MINIATURE / "sensors"
    words = [*demo.build_options, *scenes, *SIZE, "--count", "4", "--out", out]
    done = run("calibrate", *words, cache=out.parent)
    assert done.returncode == 0, done.stderr
    return out


@pytest.fixture(scope="module")
def exported(demo, calibration, tmp_path_factory):
    """A function that exports a precision for SM 8.9, which may compute in all of them."""
    made = {}

    def export(precision, tensorrt="11.0"):
        key = precision, tensorrt
        if key not in made:
            made[key] = tmp_path_factory.mktemp("exported") / "onnx"
            fitted = () if precision in UNCALIBRATED else ("--calibration", calibration)
            words = [*demo.build_options, *SIZE, *fitted, "--int4-block", "64"]
            words += ["--target", "rtx-sm89", "--precision", precision, "--out", made[key]]
            words += ["--tensorrt", tensorrt]
            done = run("export", "all", *words, cache=calibration.parent)
            assert done.returncode == 0, done.stderr
        return made[key]

    return export


def compiled(sm, graphs):
    """Compile graphs in the other environment; results by file name."""
    script = Path(__file__).with_name("rtx_build.py")
    words = [sys.executable, "-P", script, REPO, sm, *graphs]
    done = subprocess.run([*map(str, words)], capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    results = json.loads(done.stdout)
    return {Path(path).name: result for path, result in results.items()}


@pytest.fixture
def told(record_property):
    """A function that puts a line about a graph's plan into the summary of the run."""

    def tell(precision, dialect, sm):
        return lambda name, made: record_property(
            COMPILED,
            f"{dialect} {precision} SM {sm / 10} {name}: {made['layers']} layers, "
            f"{made['bytes'] / 1e6:.1f} MB, {made['seconds']} s",
        )

    return tell


@pytest.mark.parametrize(
    ("precision", "sm"),
    [
        *((precision, 86) for precision in ("fp16", "int8_wo", "int8", "int8_sq")),
        pytest.param("fp16/int4_awq", 86, marks=pytest.mark.slow),
        ("int8,mlp=int4,model.layers.1.mlp.down_proj=fp16,visual.blocks.1.mlp.up_proj=int8_wo", 86),
        ("fp16,model.layers.1.mlp=fp32,visual.merger.mlp=fp32", 86),
        ("fp8", 89),
        ("fp8", 120),
    ],
)
def test_every_graph_is_parsed_and_compiled(exported, precision, sm, told):
    require_compiled(exported(precision), sm, told(precision, "standard", sm))


def require_compiled(folder, sm, tell):
    results = compiled(sm, [folder / name for name in GRAPHS])
    assert set(results) == set(GRAPHS)
    for name, result in results.items():
        assert "error" not in result, result["error"]
        assert result["layers"] > (200 if name != "text_head.onnx" else 2)
        tell(name, result)


@pytest.mark.parametrize(
    ("precision", "sm"), [("fp16", 86), ("int8_sq", 86), ("fp16/int4_awq", 86), ("fp8", 89)]
)
def test_so_are_those_for_an_old_tensorrt(exported, precision, sm, told):
    require_compiled(exported(precision, "10.3"), sm, told(precision, "plain", sm))


class Matrix:
    """A large layer's weights."""

    def shape(self, name):
        return 2048, 2048

    def rows(self, name, start, stop):
        return np.random.default_rng(start).standard_normal((stop - start, 2048), np.float32)

    def largest_input(self, module):
        return np.ones(1, np.float32)


@pytest.mark.parametrize(
    ("precision", "sm", "bits"),
    [("fp16", 86, 16), ("int8_wo", 86, 8), ("int8", 86, 8), ("fp8", 89, 8), ("int4", 86, 4.25)],
)
def test_a_plan_holds_weights_in_the_bits_of_their_format(tmp_path, precision, sm, bits):
    formats = Formats(lambda _module: precision, 64, ranges=Matrix(), floats="float16")
    with WeightFile(tmp_path / "weights.bin") as file:
        ops = StandardOps(Matrix(), file, formats)
        y = ops.linear(ops.input("x", "float32", ["k", 2048]), "large", bias=False)
        ops.output(y, "y", "float32", ["k", 2048])
        ops.save(tmp_path / "large.onnx", "large")
    size = compiled(sm, [tmp_path / "large.onnx"])["large.onnx"]["bytes"]
    weights = 2048 * 2048 * bits / 8
    assert weights < size < weights + 500_000  # kernels


def products(compiled):
    """The matrix products of a compiled graph: types of inputs, constants and outputs."""
    found = []
    for line in compiled.splitlines():
        if re.search("LayerType: (gemm|runtime_fusion)", line):
            parts = re.split("(?:Constants|Outputs|TacticName): ", line)[:3]
            found.append(tuple(re.findall(r"Datatype: (\w+)", part) for part in parts))
    return found


@pytest.mark.parametrize(("precision", "sm", "code"), [("int8", 86, "Int8"), ("fp8", 89, "FP8")])
def test_codes_are_multiplied_by_codes_and_summed_beyond_float16(exported, precision, sm, code):
    compiled_here = compiled(sm, [exported(precision) / name for name in GRAPHS])
    for name in ("language.onnx", "text_head.onnx"):
        for inputs, constants, outputs in products(compiled_here[name]["compiled"]):
            assert (inputs, constants[0], outputs) == ([code], code, ["Float"])
    found = products(compiled_here["language.onnx"]["compiled"])
    assert len(found) >= 16


def test_weights_alone_are_expanded_in_the_product_and_not_in_memory(exported):
    results = compiled(86, [exported("int8_wo") / name for name in ("language.onnx", GRAPHS[2])])
    for result in results.values():
        found = products(result["compiled"])
        assert found
        assert all(inputs == ["Half"] and "Int8" in constants for inputs, constants, _ in found)


@pytest.mark.parametrize("name", GRAPHS)
def test_the_compiler_itself_refuses_fp8_for_sm_86(exported, name):
    said = compiled(86, [exported("fp8") / name])[name]["error"]
    assert "does not compile the graph for SM 8.6" in said
    assert "HW-specific datatypes: fp8_e4m3" in said


def test_a_dimension_without_sizes_is_named(tmp_path):
    with WeightFile(tmp_path / "weights.bin") as file:
        ops = StandardOps(Matrix(), file, Formats.uniform("fp16"))
        ops.output(ops.input("x", "float32", ["boxes", 8]), "y", "float32", ["boxes", 8])
        ops.save(tmp_path / "g.onnx", "g")
    said = compiled(86, [tmp_path / "g.onnx"])["g.onnx"]["error"]
    assert "expected the sizes of dimension 'boxes' of input x, got those of k, m, batch" in said


def test_orin_is_no_target_of_tensorrt_for_rtx(exported):
    said = compiled(87, [exported("fp16") / "text_head.onnx"])["text_head.onnx"]["error"]
    assert "SM 8.7: expected one of " in said
    assert "SM86, SM89" in said


def test_a_graph_that_is_none_is_refused_with_the_parsers_words(exported, tmp_path):
    shutil.copy(exported("fp16") / "text_head.bin", tmp_path)
    whole = (exported("fp16") / "text_head.onnx").read_bytes()
    (tmp_path / "text_head.onnx").write_bytes(whole.replace(b"Gemm", b"Gemn"))
    said = compiled(86, [tmp_path / "text_head.onnx"])["text_head.onnx"]["error"]
    assert "does not parse the graph" in said
    assert "Gemn" in said


class RandomTower:
    """Weights of the real geometry, drawn when they are asked for."""

    def __init__(self):
        self._shapes = expected_shapes(GEOMETRY_3B)

    def shape(self, name):
        return self._shapes[name]

    def rows(self, name, start, stop):
        rng = np.random.default_rng(zlib.crc32(f"{name} {start}".encode()))  # no two are alike
        size = (stop - start, *self.shape(name)[1:])
        return 0.07 * (rng.random(size, np.float32) - np.float32(0.5))


@pytest.mark.slow
def test_the_vision_tower_of_the_real_geometry_is_compiled(tmp_path, told):
    geometry = GEOMETRY_3B.vision
    with WeightFile(tmp_path / "vision.bin") as file:
        formats = Formats(lambda _module: "fp16", floats="float16")
        ops = StandardOps(RandomTower(), file, formats)
        vision_tower(ops, geometry, static_windows(geometry, 16, 30))
        ops.save(tmp_path / "vision.onnx", "vision")
    result = compiled(86, [tmp_path / "vision.onnx"])["vision.onnx"]
    told("fp16", "standard", 86)("vision tower of the 3B geometry", result)
    assert result["layers"] > 32 * 100
    assert 1.3e9 < result["bytes"] < 1.5e9
