"""NVIDIA's TensorRT Edge-LLM exports our unified checkpoints, and its graphs hold our numbers.

Its exporter runs in an environment of its own (make .venv-edgellm/stamp). It needs no GPU; nothing
that it writes is built or run here.
"""

import os
import subprocess

import numpy as np
import onnx
import pytest
from demo_engine import RECIPE, REPO
from onnx import numpy_helper
from safetensors import safe_open

from autovla_rt.export.emit.unified_checkpoint import emit_checkpoint
from autovla_rt.export.open_model import ModelFiles, open_model
from autovla_rt.export.progress import NoProgress
from autovla_rt.export.quantize import int4_symmetric
from autovla_rt.export.settings import Settings
from autovla_rt.export.unified import unified_weights
from autovla_rt.export.unified_settings import check_unified

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.slow

EXPORTER = REPO / ".venv-edgellm" / "bin" / "tensorrt-edgellm-export"
SM = {"agx-orin-64": 87, "agx-thor": 110}
LAYERS = [f"model.layers.{index}" for index in range(4)]
PROJECTIONS = [f"{layer}.self_attn.{letter}_proj" for layer in LAYERS for letter in "qkvo"]
MLPS = [f"{layer}.mlp.{name}_proj" for layer in LAYERS for name in ("gate", "up", "down")]
VISION = [
    *(f"visual.blocks.{block}.attn.{name}" for block in range(4) for name in ("qkv", "proj")),
    *(
        f"visual.blocks.{block}.mlp.{name}_proj"
        for block in range(4)
        for name in ("gate", "up", "down")
    ),
    "visual.merger.mlp.0",
    "visual.merger.mlp.2",
]
# Of a 32-bit word: how far a nibble is shifted, and its row and column in the word's fragment.
NIBBLES = [
    *((0, 0, 0), (4, 0, 8), (8, 32, 0), (12, 32, 8)),
    *((16, 0, 1), (20, 0, 9), (24, 32, 1), (28, 32, 9)),
]


class Exported:
    """Weights, the checkpoint of ours that they went into, and the graphs made of it."""

    def __init__(self, source, checkpoint, graphs):
        self.source = source
        with safe_open(checkpoint / "model.safetensors", "pt") as file:
            self.ours = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        self.language, self.vision = (
            onnx.load(graphs / part / "model.onnx") for part in ("llm", "visual")
        )
        self.held = {
            **{
                tensor.name.removeprefix("_model."): tensor
                for tensor in self.language.graph.initializer
            },
            **{f"visual.{tensor.name}": tensor for tensor in self.vision.graph.initializer},
        }

    def theirs(self, name):
        """What a graph holds under one of our names."""
        return numpy_helper.to_array(self.held[name])


@pytest.fixture(scope="module")
def export(demo, calibration, tmp_path_factory):
    if not EXPORTER.exists():
        pytest.skip(f"{EXPORTER} is missing: make .venv-edgellm/stamp")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    model = open_model(ModelFiles(demo.base, demo.config, recipe=RECIPE))

    def export(precision, target="agx-orin-64"):
        folder = tmp_path_factory.mktemp("edgellm")
        settings = Settings(
            "c", target, precision, calibration=None if precision == "fp16" else calibration
        )
        check_unified(settings)
        source, formats = unified_weights(model, settings, NoProgress())
        ours = folder / "ours"
        ours.mkdir()
        emit_checkpoint(model, source, formats, ours)
        command = [EXPORTER, ours, folder / "graphs", "--target-sm", SM[target]]
        done = subprocess.run(
            [*map(str, command)],
            capture_output=True,
            text=True,
            timeout=300,
            cwd=folder,
            env=environment,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        return Exported(source, ours, folder / "graphs")

    with model.checkpoint:
        yield export


def same(found, name):
    np.testing.assert_array_equal(found.theirs(name), found.ours[name].numpy(), err_msg=name)


def test_half_precision(export):
    found = export("fp16")
    held = [
        numpy_helper.to_array(tensor)
        for graph in (found.language, found.vision)
        for tensor in graph.graph.initializer
    ]
    by_shape = {}
    for array in held:
        by_shape.setdefault(array.shape, []).append(array)
    ours = {name: tensor.numpy() for name, tensor in found.ours.items()}
    fused = [
        np.concatenate([ours[f"{layer}.self_attn.{letter}_proj.weight"] for letter in "qkv"])
        for layer in LAYERS
    ]
    others = [f"{layer}.self_attn.o_proj" for layer in LAYERS] + MLPS + VISION
    for matrix in (*fused, *(ours[f"{name}.weight"] for name in others)):
        same_shape = by_shape.get(matrix.shape, []) + [
            array.T for array in by_shape.get(matrix.shape[::-1], [])
        ]
        assert any(np.array_equal(matrix, array) for array in same_shape)
    same_head = found.theirs("lm_head.weight")
    np.testing.assert_array_equal(same_head, ours["model.embed_tokens.weight"])


def test_int8_weights_and_inputs_in_both_towers(export):
    found = export("int8_sq/int8_sq")
    for module in PROJECTIONS + MLPS + VISION:
        same(found, f"{module}.weight")
        same(found, f"{module}.weight_scale")
    for name in ("model.layers.0.self_attn.q_proj", "visual.blocks.0.attn.qkv"):
        same(found, f"{name}.input_scale")
        assert (found.theirs(f"{name}.pre_quant_scale") == 1).all()
    for graph, layers in ((found.language, 28), (found.vision, 22)):
        operators = [node.op_type for node in graph.graph.node]
        quantized = operators.count("QuantizeLinear")
        assert operators.count("DequantizeLinear") == quantized + layers
        assert quantized >= layers / 2  # layers that read one value share it


@pytest.mark.parametrize("precision", ["int4_awq", "int8_sq/int4_awq"])
def test_int4_weights(export, precision):
    found = export(precision)
    assert [node.op_type for node in found.language.graph.node].count(
        "Int4GroupwiseGemmPluginV2"
    ) == len(PROJECTIONS + MLPS)
    for module in PROJECTIONS + MLPS:
        name = f"{module}.weight"
        rows = found.source.rows(name, 0, found.source.shape(name)[0])
        codes, scales = int4_symmetric(rows, 128)
        theirs = fragment_codes(found.theirs(name), *codes.shape)
        np.testing.assert_array_equal(theirs, codes + 8, err_msg=module)
        np.testing.assert_array_equal(found.theirs(f"{name}_scale"), scales.T.astype(np.float16))
    if precision != "int4_awq":
        for module in VISION:
            same(found, f"{module}.weight")


def fragment_codes(buffer, rows, columns):
    """Read [N, K] nibbles, biased by 8, out of the order in which the plugin's kernel wants them.

    Words are ordered by 128 rows, 64 columns, 16 columns, 64 rows, row and pair of columns.
    """
    blocks, tiles = -(-rows // 128), -(-columns // 64)
    words = np.ascontiguousarray(buffer).view(np.uint32).reshape(blocks, tiles, 4, 2, 32, 4)
    block, tile, column16, row64, row, pair = np.indices(words.shape)
    codes = np.empty((blocks * 128, tiles * 64), np.uint8)
    for shift, below, right in NIBBLES:
        n = 128 * block + 64 * row64 + row + below
        k = 64 * tile + 16 * column16 + 2 * pair + right
        codes[n, k] = words >> shift & 15
    return codes[:rows, :columns]


def test_float8_weights_inputs_keys_and_values(export):
    found = export("fp8,kv=fp8", "agx-thor")
    for module in PROJECTIONS + MLPS:
        theirs = found.held[f"{module}.weight"]
        assert theirs.data_type == onnx.TensorProto.FLOAT8E4M3FN
        ours = found.ours[f"{module}.weight"].view(torch.uint8).numpy()
        theirs = numpy_helper.to_array(theirs).view(np.uint8)
        np.testing.assert_array_equal(theirs, ours, err_msg=module)
    scales = [
        [1.0, *(float(found.ours[f"{layer}.self_attn.{of}_proj.{of}_scale"]) for of in "kv")]
        for layer in LAYERS
    ]
    attentions = [node for node in found.language.graph.node if node.op_type == "AttentionPlugin"]
    for node, expected in zip(attentions, scales, strict=True):
        attributes = {attribute.name: attribute for attribute in node.attribute}
        assert attributes["enable_fp8_kv_cache"].i == 1
        np.testing.assert_allclose(list(attributes["qkv_scales"].floats), expected, rtol=1e-6)
