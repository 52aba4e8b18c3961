from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml

from autovla_rt.errors import CheckpointError
from autovla_rt.export.tensors.lora import LoraSettings
from autovla_rt.export.training_config import check_agrees, read_training_config

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


class TestAgreement:
    """The config given against the one that the checkpoint states."""

    DIFFERENCES = (
        ("model.use_cot", False, True),
        ("model.tokens.action_start_id", 151936, 151665),
        ("model.trajectory.num_poses", 8, 10),
        ("model.trajectory.interval_length", 0.1, 0.5),
        ("model.video.min_pixels", 3136, 109760),
        ("model.video.max_pixels", 401408, 109760),
    )

    @staticmethod
    def changed(key, value):
        tree = copy.deepcopy(CONFIG)
        *parents, last = key.split(".")
        section = tree
        for parent in parents:
            section = section[parent]
        section[last] = value
        return tree

    @staticmethod
    def wrapped(tree, place):
        return {place: tree, "lr": 1e-5} if place else tree

    @pytest.mark.parametrize("place", [None, "config", "cfg", "settings"])
    @pytest.mark.parametrize(("key", "trained", "given"), DIFFERENCES)
    def test_a_difference_is_named(self, tmp_path, key, trained, given, place):
        config = read_training_config(write(tmp_path))
        stated = self.wrapped(self.changed(key, trained), place)
        with pytest.raises(CheckpointError) as caught:
            check_agrees(config, stated, tmp_path / "x.ckpt")
        lines = str(caught.value).splitlines()
        assert lines[0].startswith(f"{tmp_path / 'x.ckpt'}: ")
        assert lines[1:-1] == [f"{key}: {given} in {config.path}, {trained} in the checkpoint"]
        assert lines[-1] == "Give the config that it was trained with."

    @pytest.mark.parametrize("place", [None, "config", "cfg", "settings"])
    def test_the_same_config_agrees(self, tmp_path, place):
        config = read_training_config(write(tmp_path))
        check_agrees(config, self.wrapped(CONFIG, place), tmp_path)

    @pytest.mark.parametrize(
        "stated",
        [
            None,
            {},
            {"lr": 1e-5},
            {"model": {"use_cot": True}},
            {"model": {"use_cot": True, "video": {"max_pixels": "${pixels}"}}},
            {"model": "qwen", "config": None},
            {"config": {"model": {"use_cot": True}}, "other": {"model": {"use_cot": False}}},
        ],
        ids=str,
    )
    def test_what_is_not_stated_is_no_difference(self, tmp_path, stated):
        check_agrees(read_training_config(write(tmp_path)), stated, tmp_path)


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

    def refused(self, path):
        with pytest.raises(CheckpointError) as caught:
            read_training_config(path).model_folder()
        return str(caught.value)

    def test_a_hugging_face_id_is_recognised(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        name = "Qwen/Qwen2.5-VL-3B-Instruct"
        message = self.refused(write(tmp_path, {"model.pretrained_model_path": name}))
        assert "Hugging Face id" in message
        assert f"hf download {name}" in message
        assert "--base" in message

    def test_a_codebook_is_not_taken_for_a_hugging_face_id(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        with pytest.raises(CheckpointError, match="codebook_cache_path is") as caught:
            read_training_config(write(tmp_path)).codebook_file()
        assert "Hugging Face" not in str(caught.value)

    @pytest.mark.parametrize("name", ["./weights/base", "/data/base", "a/b/c", "base"])
    def test_a_path_is_not_taken_for_a_hugging_face_id(self, tmp_path, monkeypatch, name):
        monkeypatch.chdir(tmp_path)
        message = self.refused(write(tmp_path, {"model.pretrained_model_path": name}))
        assert "Hugging Face" not in message

    def test_the_home_of_an_unknown_user_is_refused(self, tmp_path):
        name = "~nobody-of-this-name/base"
        message = self.refused(write(tmp_path, {"model.pretrained_model_path": name}))
        assert f"model.pretrained_model_path is {name}" in message
        assert "Correct the path" in message

    def test_nothing_above_the_checkout_is_taken(self, tmp_path, monkeypatch):
        checkout = tmp_path / "checkout"
        path = write(checkout / "config")
        (tmp_path / "cwd").mkdir()
        monkeypatch.chdir(tmp_path / "cwd")
        (tmp_path / "weights" / "Qwen2.5-VL-3B-Instruct").mkdir(parents=True)
        assert read_training_config(path).model_folder().is_relative_to(tmp_path / "weights")
        (checkout / "models").mkdir()
        (checkout / "models" / "autovla.py").touch()
        assert f"\n{tmp_path / 'weights'}" not in self.refused(path)

    @pytest.mark.parametrize(("depth", "found"), [(4, True), (5, False)])
    def test_without_a_checkout_four_parents_are_searched(
        self, tmp_path, monkeypatch, depth, found
    ):
        path = write(tmp_path.joinpath(*"abcde"[:depth]))
        (tmp_path / "cwd").mkdir()
        monkeypatch.chdir(tmp_path / "cwd")
        wanted = tmp_path / "weights" / "Qwen2.5-VL-3B-Instruct"
        wanted.mkdir(parents=True)
        if found:
            assert read_training_config(path).model_folder() == wanted
        else:
            self.refused(path)
