from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml

from autovla_rt.errors import CheckpointError
from autovla_rt.export.tensors.lora import LoraSettings
from autovla_rt.export.training_config import read_training_config

# The keys of the official training configs; further ones must not disturb.
CONFIG: dict[str, Any] = {
    "name": "sft",
    "model": {
        "use_cot": True,
        "pretrained_model_path": "weights/Qwen2.5-VL-3B-Instruct",
        "codebook_cache_path": "codebook_cache/agent_vocab.pkl",
        "train_vision_backbone": False,
        "trajectory": {"num_poses": 10, "interval_length": 0.5, "time_horizon": 5.0},
        "tokens": {"action_start_id": 151665, "assistant_id": [151644, 77091]},
        "video": {"min_pixels": 109760, "max_pixels": 109760},
    },
    "inference": {"sample": {"max_length": 2048, "temperature": 0.2}},
}


def write(folder: Path, changes: dict[str, Any] | None = None) -> Path:
    """Write CONFIG with values replaced by dotted path; a value of None removes the key."""
    tree = copy.deepcopy(CONFIG)
    for key, value in (changes or {}).items():
        *parents, last = key.split(".")
        section = tree
        for parent in parents:
            section = section.setdefault(parent, {})
        if value is None:
            del section[last]
        else:
            section[last] = value
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "sft.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path


def refusal(path: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        read_training_config(path)
    return str(caught.value)


def test_reads_every_field(tmp_path):
    config = read_training_config(write(tmp_path))
    assert config.use_cot is True
    assert (config.num_poses, config.interval_length, config.time_horizon) == (10, 0.5, 5.0)
    assert config.action_start_id == 151665
    assert (config.min_pixels, config.max_pixels) == (109760, 109760)
    assert config.lora is None


@pytest.mark.parametrize(
    "changes",
    [
        {"model.lora": {"use": True, "alpha": 8, "r": 8, "dropout": 0.1}},
        {"lora_conf": {"use_lora": True, "lora_alpha": 8, "lora_dropout": 0.1}},
    ],
)
def test_reads_lora_in_both_spellings(tmp_path, changes):
    assert read_training_config(write(tmp_path, changes)).lora == LoraSettings(8)


def test_names_all_missing_keys(tmp_path):
    message = refusal(write(tmp_path, {"model.use_cot": None, "model.tokens": None}))
    assert "missing model.use_cot, model.tokens.action_start_id." in message


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("model.use_cot", "yes"),
        ("model.use_cot", 1),
        ("model.trajectory.num_poses", 10.5),
        ("model.trajectory.num_poses", 0),
        ("model.trajectory.interval_length", -0.5),
        ("model.tokens.action_start_id", "151665"),
        ("model.video.max_pixels", True),
        ("model.pretrained_model_path", 3),
    ],
)
def test_names_values_of_the_wrong_type(tmp_path, key, value):
    message = refusal(write(tmp_path, {key: value}))
    assert key in message
    assert repr(value) in message


def test_poses_must_fill_the_horizon(tmp_path):
    message = refusal(write(tmp_path, {"model.trajectory.num_poses": 8}))
    assert "num_poses 8 x interval_length 0.5 s = 4 s, but time_horizon 5 s" in message


def test_horizon_tolerates_decimal_fractions(tmp_path):
    changes = {"interval_length": 0.1, "num_poses": 3, "time_horizon": 0.3}
    path = write(tmp_path, {f"model.trajectory.{key}": value for key, value in changes.items()})
    assert read_training_config(path).num_poses == 3


@pytest.mark.parametrize("text", ["a: [", "- 1\n- 2", "", "!!python/object/apply:os.getcwd []"])
def test_refuses_what_is_no_yaml_mapping(tmp_path, text):
    path = tmp_path / "x.yaml"
    path.write_text(text)
    assert "expected" in refusal(path)


def test_refuses_a_missing_file(tmp_path):
    assert "no such file" in refusal(tmp_path / "x.yaml")


class TestPaths:
    """Relative paths mean the checkout's root, which the official code assumes to be the cwd."""

    @pytest.mark.parametrize("place", ["checkout/config/training", "checkout", "cwd"])
    def test_found_beside_the_config_above_it_or_in_the_cwd(self, tmp_path, monkeypatch, place):
        path = write(tmp_path / "checkout" / "config" / "training")
        (tmp_path / "cwd").mkdir()
        monkeypatch.chdir(tmp_path / "cwd")
        codebook = tmp_path / place / "codebook_cache" / "agent_vocab.pkl"
        codebook.parent.mkdir(parents=True)
        codebook.touch()
        model = tmp_path / place / "weights" / "Qwen2.5-VL-3B-Instruct"
        model.mkdir(parents=True)
        config = read_training_config(path)
        assert config.codebook_file() == codebook
        assert config.model_folder() == model

    def test_nearest_place_wins(self, tmp_path, monkeypatch):
        path = write(tmp_path / "config")
        (tmp_path / "cwd").mkdir()
        monkeypatch.chdir(tmp_path / "cwd")
        for folder in (tmp_path, tmp_path / "config", tmp_path / "cwd"):
            (folder / "codebook_cache").mkdir()
            (folder / "codebook_cache" / "agent_vocab.pkl").touch()
        wanted = tmp_path / "config" / "codebook_cache" / "agent_vocab.pkl"
        assert read_training_config(path).codebook_file() == wanted

    def test_absolute_path_is_taken_as_it_is(self, tmp_path):
        (tmp_path / "base").mkdir()
        absolute = str(tmp_path / "base")
        path = write(tmp_path / "config", {"model.pretrained_model_path": absolute})
        assert read_training_config(path).model_folder() == tmp_path / "base"

    def test_not_found_lists_the_places_once_each(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        config = read_training_config(write(tmp_path / "config"))
        with pytest.raises(CheckpointError) as caught:
            config.model_folder()
        lines = str(caught.value).splitlines()
        assert "model.pretrained_model_path is weights/Qwen2.5-VL-3B-Instruct" in lines[0]
        wanted = "weights/Qwen2.5-VL-3B-Instruct"
        assert lines.count(str(tmp_path / "config" / wanted)) == 1
        assert lines.count(str(tmp_path / wanted)) == 1
