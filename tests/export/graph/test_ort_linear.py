"""Each lowering of a linear layer, run in ONNX Runtime, against NumPy."""

import numpy as np
import pytest

from autovla_rt.export.graph.dialect import Formats
from autovla_rt.export.graph.ort import OrtOps
from autovla_rt.export.quantize import int8_per_channel
from autovla_rt.export.weight_file import WeightFile
from autovla_rt.ort_session import open_session

BLOCK = 32
WIDTH = 200  # no multiple of the block


class Arrays:
    """A weight source over a dictionary."""

    def __init__(self, tensors):
        self.tensors = tensors

    def shape(self, name):
        return self.tensors[name].shape

    def rows(self, name, start, stop):
        return self.tensors[name][start:stop]


def weights(rng, values):
    return Arrays(
        {
            "a.weight": values((48, WIDTH)),
            "b.weight": values((24, WIDTH)),
            "a.bias": rng.standard_normal(48).astype(np.float32),
            "b.bias": rng.standard_normal(24).astype(np.float32),
        }
    )


def run(folder, source, precision, x, *modules, bias):
    with WeightFile(folder / "weights.bin") as file:
        ops = OrtOps(source, file, Formats.uniform(precision, BLOCK))
        x_value = ops.input("x", "float32", ["m", WIDTH])
        y_value = ops.linear(x_value, *modules, bias=bias)
        ops.output(y_value, "y", "float32", ["m", "n"])
        ops.save(folder / "graph.onnx", "linear")
    return open_session(folder / "graph.onnx", 1).run(["y"], {"x": x})[0]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    ("precision", "relative"), [("fp32", 1e-6), ("int8", 0.02), ("int8_wo", 0.01), ("int4", 0.2)]
)
def test_stacked_modules_and_bias(tmp_path, precision, relative, bias):
    rng = np.random.default_rng(0)
    source = weights(rng, lambda shape: rng.standard_normal(shape).astype(np.float32))
    x = rng.standard_normal((5, WIDTH)).astype(np.float32)
    tensors = source.tensors
    expected = x @ np.concatenate([tensors["a.weight"], tensors["b.weight"]]).T
    if bias:
        expected += np.concatenate([tensors["a.bias"], tensors["b.bias"]])
    actual = run(tmp_path, source, precision, x, "a", "b", bias=bias)
    assert actual.shape == expected.shape
    assert np.sqrt(np.mean((actual - expected) ** 2)) < relative * expected.std()


def test_int8_products_do_not_saturate(tmp_path):
    """Full-range operands: CPUs without VNNI must not add products in 16 bits."""
    rng = np.random.default_rng(1)
    source = weights(rng, lambda shape: rng.integers(-127, 128, shape).astype(np.float32))
    codes = rng.integers(-127, 128, (6, WIDTH))
    codes[:, 0] = 127
    expected = codes @ int8_per_channel(source.tensors["a.weight"])[0].astype(np.int64).T
    scale = int8_per_channel(source.tensors["a.weight"])[1]
    x = codes.astype(np.float32)
    actual = run(tmp_path, source, "int8", x, "a", bias=False) / scale
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=0.5)


def test_int8_of_a_zero_row_is_the_bias(tmp_path):
    rng = np.random.default_rng(2)
    source = weights(rng, lambda shape: rng.standard_normal(shape).astype(np.float32))
    actual = run(tmp_path, source, "int8", np.zeros((2, WIDTH), np.float32), "a", bias=True)
    np.testing.assert_array_equal(actual, np.tile(source.tensors["a.bias"], (2, 1)))
