"""Padded MLPs compute what they computed, and are as wide as their format needs."""

import numpy as np
import pytest
from standard_graphs import open_unrewritten

from autovla_rt.errors import TargetError
from autovla_rt.export.graph.dialect import Formats
from autovla_rt.export.graph.eager import EagerOps, arrays_of
from autovla_rt.export.graph.qdq import QdqRounding
from autovla_rt.export.graph.standard import standard_ops
from autovla_rt.export.graph.vision import _mlp
from autovla_rt.export.passes.pad_mlp import PaddedMlps
from autovla_rt.export.weight_file import WeightFile

HIDDEN, INNER, BLOCK = 64, 104, 32
BLOCK_NAME = "visual.blocks.0"


class Arrays:
    """One MLP and a layer beside it."""

    def __init__(self, hidden=HIDDEN):
        rng = np.random.default_rng(0)
        mlp = f"{BLOCK_NAME}.mlp"
        shapes = {f"{BLOCK_NAME}.attn.proj.weight": (hidden, hidden)}
        for name, shape in (("gate", (INNER, hidden)), ("up", (INNER, hidden))):
            shapes |= {f"{mlp}.{name}_proj.weight": shape, f"{mlp}.{name}_proj.bias": shape[:1]}
        shapes |= {f"{mlp}.down_proj.weight": (hidden, INNER), f"{mlp}.down_proj.bias": (hidden,)}
        self.tensors = {
            name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()
        }

    def shape(self, name):
        return self.tensors[name].shape

    def rows(self, name, start, stop):
        return self.tensors[name][start:stop]


def mlp_of(source, x, **options):
    ops = EagerOps(source, **options)
    return arrays_of(_mlp(ops, BLOCK_NAME, ops.hold([x])))[0]


@pytest.fixture
def x():
    return np.random.default_rng(1).standard_normal((7, HIDDEN)).astype(np.float32)


def test_a_padded_mlp_is_the_same_function(x):
    source = Arrays()
    padded = PaddedMlps(source, lambda module: BLOCK if module.endswith("down_proj") else 1)
    assert padded.shape(f"{BLOCK_NAME}.mlp.down_proj.weight") == (HIDDEN, 128)
    assert padded.shape(f"{BLOCK_NAME}.mlp.gate_proj.bias") == (128,)
    expected = mlp_of(source, x)
    assert np.abs(expected).max() > 1
    np.testing.assert_allclose(mlp_of(padded, x), expected, atol=1e-5 * np.abs(expected).max())


def test_rows_of_padding_are_zeros_wherever_they_are_cut():
    padded = PaddedMlps(Arrays(), lambda _module: BLOCK)
    name = f"{BLOCK_NAME}.mlp.up_proj.weight"
    whole = padded.rows(name, 0, 128)
    assert not whole[INNER:].any()
    pieces = [padded.rows(name, start, start + 16) for start in range(0, 128, 16)]
    np.testing.assert_array_equal(np.concatenate(pieces), whole)


def test_nothing_else_is_padded():
    source = Arrays()
    untouched = PaddedMlps(source, lambda _module: 1)
    needed = PaddedMlps(source, lambda _module: BLOCK)
    assert needed.shape(f"{BLOCK_NAME}.attn.proj.weight") == (HIDDEN, HIDDEN)
    assert needed.shape(f"{BLOCK_NAME}.mlp.down_proj.bias") == (HIDDEN,)
    for name, array in source.tensors.items():
        assert untouched.shape(name) == array.shape
        np.testing.assert_array_equal(untouched.rows(name, 0, len(array)), array)


def exported(folder, source, formats, x):
    with WeightFile(folder / "weights.bin") as file:
        ops = standard_ops(source, file, formats)
        given = ops.input("x", "float32", ["m", x.shape[1]])
        ops.output(_mlp(ops, BLOCK_NAME, given), "y", "float32", ["m", x.shape[1]])
        ops.save(folder / "graph.onnx", "mlp")
    return open_unrewritten(folder / "graph.onnx").run(["y"], {"x": x})[0]


def test_the_standard_dialect_pads_for_int4_what_no_block_divides(tmp_path, x):
    formats = Formats.uniform("int4", BLOCK)
    padded = PaddedMlps(Arrays(), lambda _module: BLOCK)
    expected = mlp_of(padded, x, rounding=QdqRounding(formats))
    actual = exported(tmp_path, Arrays(), formats, x)
    np.testing.assert_allclose(actual, expected, atol=1e-5 * np.abs(expected).max())
    unrounded = mlp_of(Arrays(), x)
    assert np.sqrt(np.mean((actual - unrounded) ** 2)) < 0.2 * unrounded.std()


def test_another_width_that_no_block_divides_is_refused_by_name(tmp_path):
    x = np.zeros((1, 48), np.float32)
    with pytest.raises(
        TargetError, match=r"divides the 48 inputs of visual.blocks.0.mlp.gate_proj"
    ):
        exported(tmp_path, Arrays(hidden=48), Formats.uniform("int4", BLOCK), x)
