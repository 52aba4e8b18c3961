"""A TensorRT-LLM checkpoint is the language model that it was made of, under other names."""

import json
from functools import cache

import ml_dtypes
import numpy as np
import pytest
from checkpoint_tensors import read_tensors

from autovla_rt.config import CAMERAS
from autovla_rt.export import weight_source
from autovla_rt.export.build import camera_layout
from autovla_rt.export.emit.trtllm_config import trtllm_config
from autovla_rt.export.progress import NoProgress
from autovla_rt.export.settings import Settings
from autovla_rt.export.trtllm import export_trtllm
from autovla_rt.export.unified import unified_weights

CALIBRATED = ("int8_sq", "int4_awq", "fp8")
LAYER = "transformer.layers.1"
STACKED = {
    "attention.qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "attention.dense": ("self_attn.o_proj",),
    "mlp.fc": ("mlp.gate_proj",),
    "mlp.gate": ("mlp.up_proj",),
    "mlp.proj": ("mlp.down_proj",),
}


def chosen(precision, calibration):
    return Settings(
        "checkpoint",
        "h100",
        precision,
        frame_sizes=dict.fromkeys(CAMERAS, (392, 224)),
        calibration=calibration if precision in CALIBRATED else None,
    )


def exported(model, settings, folder):
    """Return the tensors of a new checkpoint."""
    folder.mkdir()
    export_trtllm(model, settings, camera_layout(model, settings), folder, NoProgress())
    return read_tensors(folder / "rank0.safetensors")


@pytest.fixture(scope="module")
def made(model, calibration, tmp_path_factory):
    """A function from a precision to what is made of it, once: tensors, source, formats, folder."""

    @cache
    def make(precision):
        settings = chosen(precision, calibration)
        folder = tmp_path_factory.mktemp("trtllm") / "checkpoint"
        source, formats = unified_weights(model, settings, NoProgress())
        return exported(model, settings, folder), source, formats, folder

    return make


def whole(source, name):
    return source.rows(name, 0, source.shape(name)[0])


def steps(tensors, name):
    """Return a layer's weights in float32 and how far apart their numbers are, at most."""
    weight = tensors[f"{name}.weight"]
    scale = tensors.get(f"{name}.weights_scaling_factor")
    if scale is None:
        return weight.astype(np.float32), np.float32(2e-3)
    if weight.dtype == ml_dtypes.float8_e4m3fn:
        return weight.astype(np.float32) * scale, 32 * scale
    if scale.ndim == 1:
        return weight * scale[:, None], scale[:, None]
    nibbles = np.stack([weight & 15, (weight.view(np.uint8) >> 4).view(np.int8)], axis=1)
    codes = nibbles.reshape(-1, weight.shape[1])
    codes = np.where(codes > 7, codes - 16, codes)
    scale = np.repeat(scale, 128, axis=1)
    return codes * scale, scale


@pytest.mark.parametrize("precision", ["fp16", "int8_sq", "int8_wo", "int4_awq", "fp8"])
def test_every_layer_holds_what_it_is_stacked_of(model, made, precision):
    tensors, source, _, _ = made(precision)
    for index in range(model.geometry.language.num_hidden_layers):
        for name, parts in STACKED.items():
            modules = [f"model.layers.{index}.{part}" for part in parts]
            expected = np.concatenate([whole(source, f"{of}.weight") for of in modules])
            found, step = steps(tensors, f"transformer.layers.{index}.{name}")
            assert (np.abs(found - expected) <= 0.501 * step).all(), name
        biases = [f"model.layers.{index}.self_attn.{of}_proj.bias" for of in "qkv"]
        bias = np.concatenate([whole(source, name) for name in biases])
        got = tensors[f"transformer.layers.{index}.attention.qkv.bias"]
        np.testing.assert_array_equal(got, bias.astype(np.float16))


def test_norms_and_both_vocabulary_matrices_are_there(model, made):
    tensors, source, _, _ = made("int8_sq")
    names = {
        "transformer.vocab_embedding": "model.embed_tokens",
        "lm_head": "model.embed_tokens",
        "transformer.ln_f": "model.norm",
        f"{LAYER}.input_layernorm": "model.layers.1.input_layernorm",
        f"{LAYER}.post_layernorm": "model.layers.1.post_attention_layernorm",
    }
    for theirs, ours in names.items():
        expected = whole(source, f"{ours}.weight").astype(np.float16)
        np.testing.assert_array_equal(tensors[f"{theirs}.weight"], expected)


@pytest.mark.parametrize("precision", ["int8_sq", "int4_awq"])
def test_channels_are_rescaled_already_so_inputs_are_multiplied_by_one(made, precision):
    tensors = made(precision)[0]
    for name in STACKED:
        ones = tensors[f"{LAYER}.{name}.prequant_scaling_factor"]
        assert ones.dtype == np.float16
        assert (ones == 1).all()
    assert len(ones) == 768  # inputs of the last, the down projection
    assert not any("prequant" in name for name in made("fp8")[0])


def test_gate_and_up_have_one_fp8_scale_and_no_number_is_cut(made):
    tensors, source, formats, _ = made("fp8")
    scales = [tensors[f"{LAYER}.{name}.weights_scaling_factor"] for name in ("mlp.fc", "mlp.gate")]
    np.testing.assert_array_equal(*scales)
    pair = (whole(source, f"model.layers.1.mlp.{of}_proj.weight") for of in ("gate", "up"))
    np.testing.assert_allclose(scales[0] * 448, max(np.abs(of).max() for of in pair), rtol=1e-6)
    largest = formats.ranges.largest_input("model.layers.1.mlp.down_proj").max()
    scale = tensors[f"{LAYER}.mlp.proj.activation_scaling_factor"]
    np.testing.assert_allclose(scale * 448, [largest], rtol=1e-6)


def test_chunks_do_not_show_and_no_read_is_larger(model, made, monkeypatch, tmp_path):
    whole_tensors = made("int8_wo")[0]
    monkeypatch.setattr(weight_source, "CHUNK_ELEMENTS", 5 * 768)
    sizes, read = [], model.checkpoint.read_rows

    def recorded(name, start, stop):
        rows = read(name, start, stop)
        sizes.append(rows.size)
        return rows

    monkeypatch.setattr(model.checkpoint, "read_rows", recorded)
    pieces = exported(model, chosen("int8_wo", None), tmp_path / "pieces")
    assert max(sizes) <= 5 * 768
    assert pieces.keys() == whole_tensors.keys()
    for name, tensor in whole_tensors.items():
        np.testing.assert_array_equal(pieces[name], tensor, err_msg=name)


def test_progress_counts_every_element_that_is_read(model, calibration, tmp_path):
    class Counted(NoProgress):
        expected = seen = 0

        def stage(self, name, total):
            self.expected, self.seen = total, 0

        def advance(self, count):
            self.seen += count

    for precision in ("fp16", "fp8"):
        progress, settings = Counted(), chosen(precision, calibration)
        folder = tmp_path / precision
        folder.mkdir()
        export_trtllm(model, settings, camera_layout(model, settings), folder, progress)
        assert progress.seen == progress.expected


def test_the_config_is_complete(model, made):
    """ModelOpt's lacks qwen_type, without which TensorRT-LLM's Qwen fails; see also parity."""
    language = model.geometry.language.model_copy(
        update={"vocab_size": 153713, "mrope_section": (16, 24, 24), "head_dim": 128}
    )
    config = trtllm_config(language, "int4_awq", 128, 2048)
    assert config["vocab_size"] == 153713
    assert config["rotary_base"] == 1e6
    assert config["qwen_type"] == "qwen2_vl"
    assert config["rotary_scaling"] == {"type": "mrope", "mrope_section": [16, 24, 24]}
    assert config["rotary_embedding_dim"] == config["head_size"] == 128
    assert config["quantization"] == {
        "quant_algo": "W4A16_AWQ",
        "kv_cache_quant_algo": None,
        "group_size": 128,
        "has_zero_point": False,
        "pre_quant_scale": True,
        "exclude_modules": ["lm_head"],
    }
    fp16 = json.loads((made("fp16")[3] / "config.json").read_text())
    assert fp16["quantization"] == {"quant_algo": None, "kv_cache_quant_algo": None}
