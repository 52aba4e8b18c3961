"""A unified checkpoint is the model that it was made of, but for what its formats round."""

import json
from functools import cache

import ml_dtypes
import numpy as np
import pytest
from checkpoint_tensors import read_tensors

from autovla_rt.config import CAMERAS
from autovla_rt.errors import CheckpointError
from autovla_rt.export import weight_source
from autovla_rt.export.calibration.static_methods import int4_symmetric_rounded
from autovla_rt.export.emit.stored_layers import Layer, float16_tensor, int4_weights
from autovla_rt.export.emit.unified_config import model_config, quantization
from autovla_rt.export.graph.eager import EagerOps, arrays_of
from autovla_rt.export.graph.language import language_layer
from autovla_rt.export.progress import NoProgress
from autovla_rt.export.quantize import int8_per_channel
from autovla_rt.export.settings import Settings
from autovla_rt.export.unified import export_checkpoint, unified_weights

QUANTIZED = ("int8_sq", "int8_wo", "int4_awq", "fp8", "int8_sq/fp8")
LAYER = "model.layers.1"


def is_plain(precision):
    return all(name not in precision for name in ("int8_sq", "int4_awq", "fp8"))


def chosen(precision, calibration):
    """Settings for a device that has every format."""
    return Settings(
        "checkpoint",
        "rtx-sm89",
        precision,
        frame_sizes=dict.fromkeys(CAMERAS, (392, 224)),
        calibration=None if is_plain(precision) else calibration,
    )


def exported(model, settings, folder):
    """Return the tensors of a new checkpoint."""
    folder.mkdir()
    export_checkpoint(model, settings, folder, NoProgress())
    return read_tensors(folder / "model.safetensors")


@pytest.fixture(scope="module")
def made(model, calibration, tmp_path_factory):
    """A function from a precision to what is made of it, once: tensors, source, formats, folder."""

    @cache
    def make(precision):
        settings = chosen(precision, calibration)
        folder = tmp_path_factory.mktemp("unified") / "checkpoint"
        source, formats = unified_weights(model, settings, NoProgress())
        return exported(model, settings, folder), source, formats, folder

    return make


def dequantized(tensors, name):
    """Return the weights of a layer in float32, by what the tensors themselves are like."""
    weight = tensors[f"{name}.weight"]
    if f"{name}.weight_scale" not in tensors:
        return weight.astype(np.float32)
    scale = tensors[f"{name}.weight_scale"]
    if weight.dtype == np.uint8:
        nibbles = np.stack([weight & 15, weight >> 4], axis=1).reshape(-1, weight.shape[1])
        codes = nibbles.astype(np.int8)
        codes[codes > 7] -= 16
        return codes * np.repeat(scale, weight.shape[1] // scale.shape[1], axis=1)
    return weight.astype(np.float32) * (scale[:, None] if scale.ndim else scale)


def rounded(rows, precision):
    """Return what a precision makes of weights."""
    match precision:
        case "int8_sq" | "int8_wo":
            codes, scale = int8_per_channel(rows)
            return codes * scale[:, None]
        case "int4_awq":
            return int4_symmetric_rounded(rows, 128)
        case "fp8":
            scale = np.float32(np.abs(rows).max() / 448)
            return (rows / scale).astype(ml_dtypes.float8_e4m3fn).astype(np.float32) * scale
        case "fp16":
            return rows.astype(np.float16).astype(np.float32)


class Dequantized:
    """A checkpoint as a WeightSource."""

    def __init__(self, tensors):
        self._tensors = tensors

    def shape(self, name):
        return self._tensor(name).shape

    def rows(self, name, start, stop):
        return self._tensor(name)[start:stop]

    def _tensor(self, name):
        if name == "lm_head.weight":
            name = "model.embed_tokens.weight"
        module, _, kind = name.rpartition(".")
        if kind == "weight":
            return dequantized(self._tensors, module)
        return self._tensors[name].astype(np.float32)


def logits(source, geometry):
    """Return [20, vocabulary] of some states, by the language model without its embedding."""
    rng = np.random.default_rng(1)
    angles = rng.uniform(0, 6, (20, geometry.head_dim // 2)).astype(np.float32)
    ops = EagerOps(source, (np.cos(angles), np.sin(angles)))
    ids = rng.integers(0, geometry.vocab_size, 20)
    table = source.rows("model.embed_tokens.weight", 0, geometry.vocab_size)
    x = ops.hold([table[ids]])
    states = x, ops.rms_norm(x, "model.layers.0.input_layernorm.weight", 1e-6)
    for index in range(geometry.num_hidden_layers):
        states = language_layer(ops, geometry, index, states)
    return arrays_of(ops.linear(states[1], "lm_head", bias=False))[0]


@pytest.mark.parametrize("precision", QUANTIZED)
def test_what_is_read_back_is_what_the_precision_rounds_to(model, made, precision):
    tensors, source, formats, _ = made(precision)
    for name in model.checkpoint.names:
        rows = source.rows(name, 0, source.shape(name)[0])
        module = name.removesuffix(".weight")
        of = formats.of(module) if name.endswith(".weight") else "fp16"
        found = dequantized(tensors, module) if of != "fp16" else tensors[name]
        np.testing.assert_allclose(
            found.astype(np.float32), rounded(rows, of), rtol=1e-6, atol=1e-9, err_msg=name
        )
    assert "lm_head.weight" not in tensors


@pytest.mark.parametrize(
    ("precision", "most"),
    [("fp16", 2e-3), ("int8_wo", 0.05), ("int8_sq", 0.05), ("fp8", 0.15), ("int4_awq", 0.35)],
)
def test_rescaled_and_rounded_it_is_still_the_same_model(model, made, precision, most):
    geometry = model.geometry.language
    tensors = made(precision)[0]
    before, after = (logits(of, geometry) for of in (model.weights(), Dequantized(tensors)))
    assert np.linalg.norm(after - before) < most * np.linalg.norm(before)


@pytest.mark.parametrize("precision", ["int8_sq/int8_sq", "fp8/fp8"])
def test_layers_that_are_fused_share_the_scale_of_their_input(made, precision):
    tensors = made(precision)[0]
    attention, mlp = f"{LAYER}.self_attn", f"{LAYER}.mlp"
    for fused in (
        [f"{attention}.{letter}_proj" for letter in "qkv"],
        [f"{mlp}.gate_proj", f"{mlp}.up_proj"],
        ["visual.blocks.0.mlp.gate_proj", "visual.blocks.0.mlp.up_proj"],
    ):
        scales = {float(tensors[f"{name}.input_scale"]) for name in fused}
        assert len(scales) == 1
        assert scales.pop() > 0
    scales = [
        tensors[f"{name}.input_scale"] for name in (f"{attention}.o_proj", f"{mlp}.down_proj")
    ]
    assert scales[0] != scales[1]


def test_the_largest_input_is_just_not_cut(made):
    tensors, _, formats, _ = made("int8_sq")
    name = f"{LAYER}.mlp.down_proj"
    largest = formats.ranges.largest_input(name).max()
    np.testing.assert_allclose(tensors[f"{name}.input_scale"] * 127, largest, rtol=1e-6)


def test_keys_and_values_in_fp8_have_a_scale_in_every_layer(model, made):
    tensors, _, formats, _ = made("fp16,kv=fp8")
    for layer in range(model.geometry.language.num_hidden_layers):
        for of, largest in zip("kv", formats.ranges.largest_kv(layer), strict=True):
            scale = tensors[f"model.layers.{layer}.self_attn.{of}_proj.{of}_scale"]
            np.testing.assert_allclose(scale * 448, largest.max(), rtol=1e-6)


def test_chunks_do_not_show_and_no_read_is_larger(model, made, monkeypatch, tmp_path):
    precision = "fp16,mlp=int8_wo,model.layers.0.self_attn=int8_wo"
    whole = made(precision)[0]
    monkeypatch.setattr(weight_source, "CHUNK_ELEMENTS", 5 * 768)
    sizes, read = [], model.checkpoint.read_rows

    def recorded(name, start, stop):
        rows = read(name, start, stop)
        sizes.append(rows.size)
        return rows

    monkeypatch.setattr(model.checkpoint, "read_rows", recorded)
    settings = chosen(precision, None)
    pieces = exported(model, settings, tmp_path / "pieces")
    assert max(sizes) <= 5 * 768
    assert pieces.keys() == whole.keys()
    for name, tensor in whole.items():
        np.testing.assert_array_equal(pieces[name], tensor, err_msg=name)


def test_int4_packs_the_same_pairs_of_rows_whatever_the_chunks(monkeypatch):
    class Random:
        values = np.random.default_rng(0).standard_normal((14, 128)).astype(np.float32)

        def shape(self, name):
            return self.values.shape

        def rows(self, name, start, stop):
            return self.values[start:stop]

    packed = []
    for elements in (1 << 20, 5 * 128):
        monkeypatch.setattr(weight_source, "CHUNK_ELEMENTS", elements)
        pieces = list(int4_weights(Layer(Random(), "a", ("a",))).pieces())
        packed.append(np.concatenate([values for name, values in pieces if name == "a.weight"]))
    assert len(pieces) == 2 * 4
    np.testing.assert_array_equal(*packed)


def test_the_configs_say_what_is_quantized_how(made):
    folder = made("int8_sq/fp8,model.layers.2=fp16")[3]
    config = json.loads((folder / "config.json").read_text())
    section = json.loads((folder / "hf_quant_config.json").read_text())["quantization"]
    assert config["quantization_config"]["quant_method"] == "modelopt"
    assert config["torch_dtype"] == "float16"
    assert section["quant_algo"] == config["quantization_config"]["quant_algo"] == "MIXED_PRECISION"
    layers = section["quantized_layers"]
    assert layers["model.visual.blocks.0.attn.qkv"] == {"quant_algo": "W8A8_SQ_PER_CHANNEL"}
    assert layers["model.language_model.layers.1.mlp.down_proj"] == {"quant_algo": "FP8"}
    excluded = section["exclude_modules"]
    assert excluded == config["quantization_config"]["ignore"]
    assert "lm_head" in excluded
    assert "model.language_model.layers.2.mlp.down_proj" in excluded
    assert len(layers) == 22 + 3 * 7


def test_int4_names_its_block_in_both_files(made):
    folder = made("int4_awq")[3]
    section = json.loads((folder / "hf_quant_config.json").read_text())["quantization"]
    embedded = json.loads((folder / "config.json").read_text())["quantization_config"]
    for of in (section, embedded):
        assert (of["quant_algo"], of["group_size"]) == ("W4A16_AWQ", 128)


def test_a_checkpoint_without_quantization_says_nothing_of_it(made):
    folder = made("fp16")[3]
    assert "quantization_config" not in json.loads((folder / "config.json").read_text())
    assert not (folder / "hf_quant_config.json").exists()


def test_the_trained_vocabulary_replaces_the_bases_wherever_it_stands():
    base = {
        "vocab_size": 151936,
        "torch_dtype": "bfloat16",
        "quantization_config": {"quant_method": "awq"},
        "text_config": {"vocab_size": 151936, "dtype": "bfloat16"},
        "vision_config": {"depth": 32},
    }
    config = model_config(base, 153713, quantization({}, 128, "auto"))
    assert config == {
        "vocab_size": 153713,
        "torch_dtype": "float16",
        "text_config": {"vocab_size": 153713, "dtype": "float16"},
        "vision_config": {"depth": 32},
    }
    assert base["vocab_size"] == 151936


def test_what_does_not_fit_half_precision_is_refused_by_name():
    class Large:
        def shape(self, name):
            return (3,)

        def rows(self, name, start, stop):
            return np.array([1, 7e4, 2], np.float32)[start:stop]

    with pytest.raises(CheckpointError, match=r"a\.bias: expected values that fit .* got 70000"):
        list(float16_tensor(Large(), "a.bias").pieces())
