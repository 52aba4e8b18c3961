"""The `openvino` dialect alone: what it stores, and what it refuses."""

import sys

import numpy as np
import pytest

from autovla_rt.errors import DependencyError, TargetError
from autovla_rt.export.emit.graphs import emit_language
from autovla_rt.export.graph.dialect import Formats
from autovla_rt.export.graph.openvino import DIALECT, OpenVinoOps
from autovla_rt.export.settings import Settings, check_settings
from autovla_rt.export.weight_file import WeightFile
from autovla_rt.openvino_library import ov


class Source:
    """One matrix and its bias."""

    def __init__(self, rows, width):
        rng = np.random.default_rng(0)
        self.tensors = {
            "m.weight": rng.standard_normal((rows, width)).astype(np.float32),
            "m.bias": rng.standard_normal(rows).astype(np.float32),
        }

    def shape(self, name):
        return self.tensors[name].shape

    def rows(self, name, start, stop):
        return self.tensors[name][start:stop]


def product(folder, precision, x, block=32):
    source = Source(48, x.shape[1])
    with WeightFile(folder / "weights") as weights:
        ops = OpenVinoOps(source, weights, Formats.uniform(precision, block))
        given = ops.input("x", "float32", ["k", x.shape[1]])
        ops.output(ops.linear(given, "m", bias=True), "y", "float32", ["k", 48])
        ops.save(folder / "m.xml", "m")
    (folder / "weights").unlink()
    # Exact products: activations are not quantized.
    settings = {"INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0}
    model = ov.Core().compile_model(str(folder / "m.xml"), "CPU", settings)
    (y,) = model([x]).values()
    return source, y


@pytest.mark.parametrize(("precision", "error"), [("fp32", 1e-5), ("int8", 0.01), ("int4", 0.1)])
def test_a_stored_product_is_that_of_the_checkpoint(tmp_path, precision, error):
    x = np.random.default_rng(1).standard_normal((5, 64)).astype(np.float32)
    source, y = product(tmp_path, precision, x)
    expected = x @ source.tensors["m.weight"].T + source.tensors["m.bias"]
    relative = np.linalg.norm(y - expected) / np.linalg.norm(expected)
    assert relative < error
    if precision != "fp32":
        assert relative > error / 50
        bits = {"int8": 8, "int4": 4}[precision]
        scales = 48 * (1 if precision == "int8" else 2)
        least = 48 * 64 * bits // 8 + scales * 4
        assert least <= (tmp_path / "m.bin").stat().st_size < 1.3 * least


def test_a_block_that_does_not_divide_a_layers_inputs_is_refused(tmp_path):
    x = np.zeros((2, 80), np.float32)
    with pytest.raises(TargetError, match="int4 block 32: expected one that divides the 80 inputs"):
        product(tmp_path, "int4", x)


def test_an_output_must_be_what_is_declared(tmp_path):
    with WeightFile(tmp_path / "weights") as weights:
        ops = OpenVinoOps(Source(4, 4), weights, Formats.uniform("fp32"))
        x = ops.input("x", "float32", ["k", 4])
        with pytest.raises(ValueError, match="declared as float16"):
            ops.output(x, "y", "float16", ["k", 4])
        with pytest.raises(ValueError, match="declared as float32"):
            ops.output(x, "y", "float32", ["k"])


def test_a_failed_build_leaves_no_weights_behind(tmp_path):
    with pytest.raises(AttributeError):
        emit_language(DIALECT, None, None, Formats.uniform("int8"), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_missing_openvino_is_told_before_any_work(monkeypatch):
    modules = [name for name in sys.modules if name.startswith("autovla_rt") and "openvino" in name]
    for name in ["openvino", *modules]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "openvino", None)
    check_settings(Settings("engine"))
    with pytest.raises(DependencyError, match=r"pip install 'autovla-rt\[openvino\]'"):
        check_settings(Settings("engine", "x86"))
