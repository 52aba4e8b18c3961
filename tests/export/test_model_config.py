from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from autovla_rt.config import Preprocessing
from autovla_rt.errors import CheckpointError
from autovla_rt.export.model_config import read_geometry, read_preprocessing


@pytest.fixture
def flat(random_checkpoint, tiny_geometry, tmp_path) -> Path:
    """A folder whose config.json is flat, as transformers 4.49 and the hub have it."""
    random_checkpoint.write_hf_folder(tmp_path, tiny_geometry, 0)
    return tmp_path


def change(folder: Path, key: str, value: Any) -> None:
    """Replace a value of config.json by dotted path; ... removes it."""
    path = folder / "config.json"
    tree = json.loads(path.read_text())
    *parents, last = key.split(".")
    section = tree
    for parent in parents:
        section = section.setdefault(parent, {})
    section.pop(last, None)
    if value is not ...:
        section[last] = value
    path.write_text(json.dumps(tree))


def refusal(folder: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        read_geometry(folder)
    return str(caught.value)


def test_reads_a_flat_config(flat, tiny_geometry):
    assert read_geometry(flat) == tiny_geometry


@pytest.mark.parametrize("tied", [True, False])
def test_reads_the_nested_config_that_transformers_saves(
    torch_files, tiny_geometry, tmp_path, tied
):
    language = tiny_geometry.language.model_copy(update={"tie_word_embeddings": tied})
    geometry = tiny_geometry.model_copy(update={"language": language})
    torch_files.qwen_model(geometry).save_pretrained(tmp_path)
    assert "text_config" in json.loads((tmp_path / "config.json").read_text())
    assert read_geometry(tmp_path) == geometry


def test_nested_values_win_over_flat_ones(flat, tiny_geometry):
    change(flat, "text_config.vocab_size", 321)
    assert read_geometry(flat).language.vocab_size == 321


def test_reads_an_explicit_head_dim(flat):
    change(flat, "head_dim", 16)
    change(flat, "rope_scaling.mrope_section", [2, 3, 3])
    assert read_geometry(flat).language.head_dim == 16


def test_reads_the_rope_parameters_of_newer_transformers(flat, tiny_geometry):
    rope = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [1, 1, 2]}
    change(flat, "rope_theta", ...)
    change(flat, "rope_scaling", ...)
    change(flat, "rope_parameters", rope)
    assert read_geometry(flat) == tiny_geometry


def test_tokens_per_second_is_never_filled_in(flat):
    change(flat, "vision_config.tokens_per_second", ...)
    message = refusal(flat)
    assert "missing vision_config.tokens_per_second" in message
    assert "4 by transformers' default" in message


def test_names_all_missing_keys(flat):
    change(flat, "rms_norm_eps", ...)
    change(flat, "tie_word_embeddings", ...)
    assert "missing rms_norm_eps, tie_word_embeddings" in refusal(flat)


def test_names_another_architecture(flat):
    change(flat, "architectures", ["Qwen2VLForConditionalGeneration"])
    assert "got ['Qwen2VLForConditionalGeneration']" in refusal(flat)
    change(flat, "architectures", ...)
    assert read_geometry(flat)
    change(flat, "model_type", "qwen2_vl")
    assert "got 'qwen2_vl'" in refusal(flat)


@pytest.mark.parametrize(
    ("key", "value", "shown"),
    [
        ("vision_config.depth", 0, "vision_config.depth is 0, expected a positive integer"),
        ("hidden_size", "48", "hidden_size is '48', expected a positive integer"),
        ("rms_norm_eps", "small", "language.rms_norm_eps"),
        ("rope_scaling.mrope_section", [1, 3], "language.mrope_section"),
        ("rope_scaling.mrope_section", [1, 1, 3], "mrope_section adds up to half of head_dim 8"),
        ("rope_scaling.type", "yarn", "'mrope' or 'default' is supported"),
        ("hidden_act", "gelu", "hidden_act is 'gelu', only 'silu'"),
        ("vision_config.hidden_act", "gelu", "vision_config.hidden_act is 'gelu'"),
        ("use_sliding_window", True, "use_sliding_window is True"),
        ("text_config.tie_word_embeddings", False, "True at the top but False in text_config"),
        ("vision_config.out_hidden_size", 64, "out_hidden_size is the language hidden_size"),
        ("vision_config.fullatt_block_indexes", [2], "fullatt_block_indexes are below depth"),
        ("vision_config.window_size", 100, "window_size is a multiple of 28"),
        ("vision_config.num_heads", 3, "multiple of num_heads"),
        ("num_key_value_heads", 4, "multiple of num_key_value_heads"),
    ],
)
def test_refuses_values_that_cannot_be_right(flat, key, value, shown):
    change(flat, key, value)
    message = refusal(flat)
    assert shown in message
    assert str(flat / "config.json") in message


@pytest.mark.parametrize("text", [None, "{", "[]"])
def test_refuses_a_folder_without_a_config(tmp_path, text):
    if text is not None:
        (tmp_path / "config.json").write_text(text)
    assert "config.json" in refusal(tmp_path)


class TestPreprocessing:
    def test_reads_the_processor_of_qwen(self, qwen_folder):
        assert read_preprocessing(qwen_folder, 109760, 109760) == Preprocessing(
            min_pixels=109760, max_pixels=109760
        )

    def test_reads_other_means(self, tmp_path):
        content = {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.1, 0.3]}
        (tmp_path / "preprocessor_config.json").write_text(json.dumps(content))
        read = read_preprocessing(tmp_path, 3136, 109760)
        assert read == Preprocessing(**content, min_pixels=3136, max_pixels=109760)

    def test_names_missing_keys(self, tmp_path):
        (tmp_path / "preprocessor_config.json").write_text('{"image_mean": [0.5, 0.5, 0.5]}')
        with pytest.raises(CheckpointError, match="missing image_std"):
            read_preprocessing(tmp_path, 3136, 109760)
