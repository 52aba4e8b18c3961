"""NVIDIA's TensorRT Edge-LLM exports our quantized checkpoints, and its graphs hold our numbers.

Its exporter runs in an environment of its own (make .venv-edgellm/stamp). It needs no GPU; nothing
that it writes is built or run here.
"""

import numpy as np
import onnx
import pytest
from demo_engine import RECIPE
from edgellm_graphs import export_for_edgellm, heavy_operators
from onnx import numpy_helper

from autovla_rt.export.open_model import ModelFiles, open_model
from autovla_rt.export.progress import NoProgress
from autovla_rt.export.quantize import int4_symmetric
from autovla_rt.export.settings import Settings
from autovla_rt.export.unified import unified_weights

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.slow

DEPTH = 4
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


@pytest.fixture
def export(demo, calibration, tmp_path):
    def export(precision, target="agx-orin-64"):
        return export_for_edgellm(demo, tmp_path / "folder", precision, calibration, target)

    return export


def test_int8_weights_and_inputs_in_both_towers(export):
    found = export("int8_sq/int8_sq")
    for module in PROJECTIONS + MLPS + VISION:
        found.require_same(f"{module}.weight")
        found.require_same(f"{module}.weight_scale")
    require_rest(found)
    inputs = 4 * DEPTH  # of queries, keys and values; of gate and up; and two alone
    assert heavy_operators(found.language) == {
        "trt_edgellm::AttentionPlugin": DEPTH,
        "MatMul": 7 * DEPTH,
        "Gemm": 1,
        "QuantizeLinear": inputs,
        "DequantizeLinear": inputs + 7 * DEPTH,
    }
    assert heavy_operators(found.vision) == {
        "trt_edgellm::ViTAttentionPlugin": DEPTH,
        "Gemm": 5 * DEPTH + 2,
        "Conv": 1,
        "QuantizeLinear": inputs + 2,
        "DequantizeLinear": inputs + 2 + 5 * DEPTH + 2,
    }


@pytest.mark.parametrize("precision", ["int4_awq", "int8_sq/int4_awq"])
def test_int4_weights(demo, calibration, export, precision):
    found = export(precision)
    assert heavy_operators(found.language) == {
        "trt_edgellm::AttentionPlugin": DEPTH,
        "trt_edgellm::QkvConcatPlugin": DEPTH,
        "trt_edgellm::Int4GroupwiseGemmPluginV2": 7 * DEPTH,
        "Gemm": 1,
    }
    model = open_model(ModelFiles(demo.base, demo.config, recipe=RECIPE))
    settings = Settings("c", "agx-orin-64", precision, calibration=calibration)
    with model.checkpoint:
        weights, _ = unified_weights(model, settings, NoProgress())
        for module in PROJECTIONS + MLPS:
            name = f"{module}.weight"
            rows = weights.rows(name, 0, weights.shape(name)[0])
            codes, scales = int4_symmetric(rows, 128)
            theirs = fragment_codes(found.theirs(name), *codes.shape)
            np.testing.assert_array_equal(theirs, codes + 8, err_msg=module)
            expected = scales.T.astype(np.float16)
            np.testing.assert_array_equal(found.theirs(f"{name}_scale"), expected)
    require_rest(found)


def require_rest(found):
    """Require all that is not a layer's codes to be ours, too, and nothing to be left."""
    embedding = found.ours["model.embed_tokens.weight"].numpy()
    found.require_same("lm_head.weight", embedding)
    np.testing.assert_array_equal(found.embedding(), embedding)
    for name in found.held:
        if name.endswith("pre_quant_scale"):  # channels are rescaled where they are written
            assert (found.theirs(name) == 1).all()
    found.require_others_same()


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


def test_float4_weights_and_the_scales_of_their_scales(export):
    found = export("nvfp4", "agx-thor")
    for layer in LAYERS:
        modules = {
            f"{layer}.self_attn.qkv_proj_fused": [f"{layer}.self_attn.{of}_proj" for of in "qkv"],
            f"{layer}.self_attn.o_proj": [f"{layer}.self_attn.o_proj"],
            **{
                f"{layer}.mlp.{of}_proj": [f"{layer}.mlp.{of}_proj"]
                for of in ("gate", "up", "down")
            },
        }
        for theirs, ours in modules.items():
            packed = np.concatenate([found.ours[f"{name}.weight"].numpy() for name in ours])
            held = found.held[f"{theirs}.weight"]
            assert held.data_type == onnx.TensorProto.FLOAT4E2M1
            assert held.dims == [len(packed), 2 * packed.shape[1]]
            np.testing.assert_array_equal(packed.reshape(-1).tobytes(), held.raw_data)
            scales = [found.ours[f"{name}.weight_scale"].view(torch.uint8) for name in ours]
            held = numpy_helper.to_array(found.held[f"{theirs}.weight_scale"]).view(np.uint8)
            np.testing.assert_array_equal(held, torch.cat(scales).numpy())
    quantized = [node.op_type for node in found.language.graph.node]
    assert quantized.count("TRT_FP4DynamicQuantize") == 4 * DEPTH
