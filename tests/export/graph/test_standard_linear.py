"""Each lowering of a linear layer in the `standard` dialect, run in ONNX Runtime, against NumPy."""

import numpy as np
import onnx
import pytest
from standard_graphs import open_unrewritten

from autovla_rt.errors import TargetError
from autovla_rt.export.graph.dialect import Formats
from autovla_rt.export.graph.standard import StandardOps
from autovla_rt.export.weight_file import WeightFile

BLOCK, WIDTH, ROWS = 32, 192, 72


class Arrays:
    """A weight source over a dictionary."""

    def __init__(self, seed=0):
        rng = np.random.default_rng(seed)
        shapes = {
            "a.weight": (48, WIDTH),
            "b.weight": (24, WIDTH),
            "a.bias": (48,),
            "b.bias": (24,),
        }
        self.tensors = {
            name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()
        }

    def shape(self, name):
        return self.tensors[name].shape

    def rows(self, name, start, stop):
        return self.tensors[name][start:stop]

    def stacked(self, kind):
        return np.concatenate([self.tensors[f"{module}.{kind}"] for module in "ab"])


class Ranges:
    def __init__(self, largest):
        self.largest = largest

    def largest_input(self, module):
        return self.largest


def run(folder, source, formats, x, bias):
    with WeightFile(folder / "weights.bin") as file:
        ops = StandardOps(source, file, formats)
        y = ops.linear(ops.input("x", "float32", ["m", WIDTH]), "a", "b", bias=bias)
        ops.output(y, "y", "float32", ["m", "n"])
        ops.save(folder / "graph.onnx", "linear")
    return open_unrewritten(folder / "graph.onnx").run(["y"], {"x": x})[0]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("floats", ["float32", "float16"])
@pytest.mark.parametrize(
    ("precision", "least", "most"),
    [
        ("fp16", 0, 5e-4),
        ("int8_wo", 3e-3, 0.01),
        ("int8", 5e-3, 0.02),
        ("fp8", 0.01, 0.05),
        ("int4", 0.05, 0.15),
    ],
)
def test_a_product_loses_what_its_format_costs(tmp_path, precision, floats, bias, least, most):
    source = Arrays()
    x = np.random.default_rng(1).standard_normal((5, WIDTH)).astype(np.float32)
    ranges = Ranges(np.abs(x).max(axis=0))
    formats = Formats(lambda _module: precision, BLOCK, ranges=ranges, floats=floats)
    expected = x @ source.stacked("weight").T + (source.stacked("bias") if bias else 0)
    actual = run(tmp_path, source, formats, x, bias)
    assert actual.shape == expected.shape
    assert actual.dtype == np.float32
    lost = np.sqrt(np.mean((actual - expected) ** 2)) / expected.std()
    assert least <= lost < most
    if precision == "fp16" and floats == "float32":
        assert lost < 1e-6


@pytest.mark.parametrize(
    ("precision", "bits", "bytes_of_scales"),
    [("fp16", 16, 0), ("int8", 8, 4), ("fp8", 8, 4), ("int8_wo", 8, 2), ("int4", 4, 2 * 6)],
)
def test_weights_are_stored_in_their_bits(tmp_path, precision, bits, bytes_of_scales):
    formats = Formats(lambda _m: precision, BLOCK, ranges=Ranges(np.ones(1)), floats="float16")
    run(tmp_path, Arrays(), formats, np.ones((1, WIDTH), np.float32), False)
    expected = ROWS * (WIDTH * bits // 8 + bytes_of_scales)
    assert (tmp_path / "weights.bin").stat().st_size == expected


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("precision", ["int8_wo", "int4", "int8", "fp8"])
def test_an_odd_number_of_outputs_is_the_same_with_one_more_inside(tmp_path, precision, bias):
    source = Arrays()
    x = np.random.default_rng(1).standard_normal((5, WIDTH)).astype(np.float32)
    formats = Formats(lambda _m: precision, BLOCK, ranges=Ranges(np.full(1, 4, np.float32)))
    whole = run(tmp_path, source, formats, x, bias)
    for kind in ("weight", "bias"):
        source.tensors[f"b.{kind}"] = source.tensors[f"b.{kind}"][:-1]
    odd = run(tmp_path, source, formats, x, bias)
    assert odd.shape == (5, ROWS - 1)
    np.testing.assert_allclose(odd, whole[:, :-1], rtol=0, atol=1e-5)


def test_a_static_scale_is_the_calibrations_largest_value_over_127(tmp_path):
    formats = Formats(lambda _module: "int8", ranges=Ranges(np.array([0.5, 12.7], np.float32)))
    x = np.zeros((2, WIDTH), np.float32)
    x[0, 0], x[1, 0] = 12.7, 1e6
    y = run(tmp_path, Arrays(), formats, x, bias=False)
    np.testing.assert_allclose(y[1], y[0], rtol=1e-6)
    graph = onnx.load(tmp_path / "graph.onnx", load_external_data=False).graph
    (scale,) = (of for of in graph.initializer if of.name == "a.input_scale")
    np.testing.assert_allclose(onnx.numpy_helper.to_array(scale), 0.1, rtol=1e-6)


def test_layers_that_read_one_value_share_its_codes(tmp_path):
    formats = Formats(lambda _module: "int8", ranges=Ranges(np.ones(1, np.float32)))
    with WeightFile(tmp_path / "weights.bin") as file:
        ops = StandardOps(Arrays(), file, formats)
        x = ops.input("x", "float32", ["m", WIDTH])
        for module in "ab":
            ops.output(ops.linear(x, module, bias=True), module, "float32", ["m", "n"])
        ops.save(tmp_path / "graph.onnx", "linear")
    graph = onnx.load(tmp_path / "graph.onnx", load_external_data=False).graph
    assert [node.op_type for node in graph.node].count("QuantizeLinear") == 1


def test_a_block_that_does_not_divide_a_layers_inputs_is_refused_by_name(tmp_path):
    x = np.zeros((1, WIDTH), np.float32)
    with pytest.raises(TargetError, match="expected one that divides the 192 inputs of a"):
        run(tmp_path, Arrays(), Formats.uniform("int4", 128), x, bias=False)
