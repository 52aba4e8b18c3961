from __future__ import annotations

import argparse

import ml_dtypes
import numpy as np
import pytest
import torch

from autovla_rt.errors import CheckpointError
from autovla_rt.export.checkpoint import open_checkpoint
from autovla_rt.export.tensors.lora import (
    LoraSettings,
    find_lora_settings,
    merge_lora,
)

QUERY = "model.layers.0.self_attn.q_proj"
TRAINING = {"use": True, "alpha": 16, "dropout": 0.1, "r": 4}
AGENT = {"use_lora": True, "lora_alpha": 16, "lora_dropout": 0.1, "r": 4}


@pytest.fixture
def lora_state(torch_files, tiny_state):
    """State in PEFT's names and the pairs (A, B) by module."""
    return torch_files.with_lora(tiny_state, rank=4)


@pytest.mark.parametrize("layout", ["old", "new"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_merges_what_torch_saved(torch_files, tiny_geometry, tmp_path, layout, dtype):
    state = torch_files.qwen_model(tiny_geometry).to(dtype).state_dict()
    old = torch_files.old_names(state)
    wrapped, pairs = torch_files.with_lora(old if layout == "old" else state, rank=4)
    path = torch_files.save_lightning(tmp_path / "x.ckpt", wrapped, "autovla.vlm.")
    assert len(pairs) == 8
    with open_checkpoint(path, geometry=tiny_geometry, lora=LoraSettings(12)) as checkpoint:
        assert set(checkpoint.names) == set(old) - {"lm_head.weight"}
        for module, (a, b) in pairs.items():
            name = torch_files.old_names({module: a}).popitem()[0] + ".weight"
            wanted = old[name].double() + 12 / 4 * b.double() @ a.double()
            got = checkpoint.read(name)
            assert got.dtype == checkpoint.info(name).dtype == np.float32
            np.testing.assert_allclose(got, wanted.numpy(), rtol=0, atol=1e-4)
        bias = checkpoint.read(f"{QUERY}.bias")
        assert bias.tobytes() == torch_files.raw_bytes(old[f"{QUERY}.bias"])


def test_merge_is_in_float32_for_narrow_types():
    base = np.full((1, 2), 1.0, ml_dtypes.bfloat16)
    a, b = (np.full(shape, 1 + 2.0**-10, np.float16) for shape in ((1, 2), (1, 1)))
    merged = merge_lora(base, a, b, 0.5)
    assert merged.dtype == np.float32
    assert merged.tolist() == [[1 + 0.5 * (1 + 2.0**-10) ** 2] * 2]


class TestSettings:
    @pytest.mark.parametrize("section", [TRAINING, AGENT])
    def test_both_spellings(self, section):
        assert find_lora_settings({"lora": section}, "x") == LoraSettings(16)

    @pytest.mark.parametrize(
        "section", [{**TRAINING, "use": False}, {"use": "gpu", "alpha": 3}, {}]
    )
    def test_off_or_not_mentioned(self, section):
        assert find_lora_settings({"lora": section}, "x") is None

    @pytest.mark.parametrize("alpha", [None, 0, -8, "8", True, float("nan"), float("inf")])
    def test_alpha_must_be_a_positive_number(self, alpha):
        with pytest.raises(CheckpointError, match=r"c\.yaml: use_lora is true, but lora_alpha is"):
            find_lora_settings({**AGENT, "lora_alpha": alpha}, "c.yaml")

    def test_found_at_any_depth(self):
        tree = {"a": 3, "config": {"model": {"lora": TRAINING}, "agent": {"lora_conf": AGENT}}}
        assert find_lora_settings(tree, "x") == LoraSettings(16)
        assert find_lora_settings({"augment": {"use": True}}, "x") is None

    @pytest.mark.parametrize(
        "other",
        [
            {"augmentation": {"use": True, "dropout": 0.1}},
            {"focal": {"use": True, "alpha": 0.25}},
            {"exploration": {"use": True, "alpha": 0.25}},
        ],
        ids=["augmentation", "focal", "exploration"],
    )
    def test_of_other_things_are_not_taken_for_lora(self, other):
        assert find_lora_settings({"model": other}, "x") is None
        assert find_lora_settings({"loss": other, "lora": TRAINING}, "x") == LoraSettings(16)
        assert find_lora_settings({**other, "agent": AGENT}, "x") == LoraSettings(16)

    @pytest.mark.parametrize("name", ["lora", "LoRA", "vlm_lora_conf"])
    def test_short_keys_count_under_a_name_with_lora(self, name):
        assert find_lora_settings({"model": {name: TRAINING}}, "x") == LoraSettings(16)

    def test_long_keys_win_over_short_ones_of_another_thing(self):
        tree = {"agent": {**AGENT, "use": True, "alpha": 0.25}}
        assert find_lora_settings(tree, "x") == LoraSettings(16)

    def test_sections_that_disagree_are_refused(self):
        tree = {"model": {"lora": TRAINING}, "lora_conf": {**AGENT, "lora_alpha": 8}}
        with pytest.raises(
            CheckpointError, match=r"x: LoRA sections disagree: alpha \[8\.0, 16\.0"
        ):
            find_lora_settings(tree, "x")

    def test_missing_settings_say_where_alpha_comes_from(
        self, torch_files, tiny_geometry, lora_state, refusal, tmp_path
    ):
        path = torch_files.save_lightning(tmp_path / "x.ckpt", lora_state[0], "autovla.vlm.")
        message = refusal(path, tiny_geometry)
        assert "8 layers hold LoRA weights" in message
        assert "model.lora.alpha" in message
        assert "model.lora.alpha" in message
        assert "lora_alpha" in message

    @pytest.mark.parametrize(
        "hyper_parameters",
        [
            {"model": {"lora": TRAINING}},
            {"lora_conf": AGENT},
            argparse.Namespace(config={"model": {"lora": argparse.Namespace(**TRAINING)}}),
        ],
        ids=["training", "agent", "namespace"],
    )
    def test_come_from_the_checkpoint_itself(
        self, torch_files, tiny_geometry, lora_state, refusal, tmp_path, hyper_parameters
    ):
        path = torch_files.save_lightning(
            tmp_path / "x.ckpt", lora_state[0], "autovla.vlm.", hyper_parameters=hyper_parameters
        )
        with (
            open_checkpoint(path, geometry=tiny_geometry) as own,
            open_checkpoint(path, geometry=tiny_geometry, lora=LoraSettings(16)) as given,
        ):
            assert np.array_equal(own.read(f"{QUERY}.weight"), given.read(f"{QUERY}.weight"))
        message = refusal(path, tiny_geometry, LoraSettings(8))
        assert "alpha 16 by its own hyper_parameters, but alpha 8 was given" in message

    def test_come_from_an_omegaconf_pickle(
        self, torch_files, tiny_geometry, lora_state, refusal, tmp_path
    ):
        path = torch_files.save_lightning(tmp_path / "x.ckpt", lora_state[0], "autovla.vlm.")
        torch_files.add_to_pickle(path, "hyper_parameters", torch_files.OMEGACONF_ALPHA_16)
        open_checkpoint(path, geometry=tiny_geometry).close()
        assert "alpha 16 by its own" in refusal(path, tiny_geometry, LoraSettings(8))

    def test_without_lora_weights_are_not_used(
        self, torch_files, tiny_geometry, tiny_state, assert_equal_to_torch, tmp_path
    ):
        path = torch_files.save_lightning(tmp_path / "x.ckpt", tiny_state, "autovla.vlm.")
        with open_checkpoint(path, geometry=tiny_geometry, lora=LoraSettings(16)) as checkpoint:
            assert_equal_to_torch(checkpoint, tiny_state)


class TestIncompleteLayers:
    @pytest.mark.parametrize(
        ("removed", "left"),
        [
            (["lora_A.default.weight"], ".base_layer.weight, .lora_B.default.weight"),
            (["lora_B.default.weight"], ".base_layer.weight, .lora_A.default.weight"),
            (["base_layer.weight"], ".lora_A.default.weight, .lora_B.default.weight"),
            (["lora_A.default.weight", "lora_B.default.weight"], ".base_layer.weight"),
        ],
    )
    def test_are_named(
        self, torch_files, tiny_geometry, lora_state, refusal, tmp_path, removed, left
    ):
        state = dict(lora_state[0])
        for part in removed:
            del state[f"base_model.model.{QUERY}.{part}"]
        path = torch_files.save_lightning(tmp_path / "x.ckpt", state, "autovla.vlm.")
        assert f"{QUERY}: only {left}" in refusal(path, tiny_geometry, LoraSettings(8))

    @pytest.mark.parametrize(
        ("part", "tensor", "shown"),
        [
            ("lora_A", torch.zeros(4, 47), "A [4, 47], B [48, 4]"),
            ("lora_B", torch.zeros(48, 5), "A [4, 48], B [48, 5]"),
            ("lora_A", torch.zeros(0, 48), "A [0, 48]"),
            ("lora_A", torch.zeros(4), "A [4]"),
            ("lora_A", torch.zeros(4, 48, dtype=torch.int32), "adapter of type int32"),
        ],
    )
    def test_of_other_shapes_are_named(
        self, torch_files, tiny_geometry, lora_state, refusal, tmp_path, part, tensor, shown
    ):
        state = {**lora_state[0], f"base_model.model.{QUERY}.{part}.default.weight": tensor}
        path = torch_files.save_lightning(tmp_path / "x.ckpt", state, "autovla.vlm.")
        message = refusal(path, tiny_geometry, LoraSettings(8))
        assert QUERY in message
        assert shown in message

    def test_a_plain_weight_beside_the_base_layer_is_refused(
        self, torch_files, tiny_geometry, lora_state, refusal, tmp_path
    ):
        state = {**lora_state[0], f"base_model.model.{QUERY}.weight": torch.zeros(48, 48)}
        path = torch_files.save_lightning(tmp_path / "x.ckpt", state, "autovla.vlm.")
        assert "several stored tensors" in refusal(path, tiny_geometry, LoraSettings(8))
