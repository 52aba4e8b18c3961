from __future__ import annotations

import numpy as np
import pytest
import torch

from autovla_rt.export.checkpoint import open_checkpoint
from autovla_rt.export.tensors.lora import LoraSettings


@pytest.mark.parametrize("layout", ["old", "new", "drivevla", "lora"])
def test_every_layout_holds_the_same_model(random_checkpoint, tiny_geometry, tmp_path, layout):
    random_checkpoint.write_hf_folder(tmp_path / "hf", tiny_geometry, 7)
    path = tmp_path / "x.ckpt"
    random_checkpoint.write_lightning(path, tiny_geometry, 7, layout=layout)
    with (
        open_checkpoint(tmp_path / "hf", geometry=tiny_geometry) as folder,
        open_checkpoint(path, geometry=tiny_geometry, lora=LoraSettings(16)) as lightning,
    ):
        for name in folder.names:
            assert np.array_equal(folder.read(name).astype(np.float32), lightning.read(name)), name


@pytest.mark.parametrize("layout", ["old", "new", "drivevla", "lora"])
@pytest.mark.parametrize("weights_only", [True, False])
def test_torch_reads_the_lightning_file(
    random_checkpoint, tiny_geometry, tmp_path, layout, weights_only
):
    path = tmp_path / "x.ckpt"
    config = {"model": {"use_cot": True, "tokens": {"assistant_id": [151644, 77091]}}}
    random_checkpoint.write_lightning(
        path, tiny_geometry, 7, layout=layout, hyper_parameters=config
    )
    loaded = torch.load(path, weights_only=weights_only)
    assert loaded["hyper_parameters"] == config
    assert len(loaded["state_dict"]) == {"lora": 76}.get(layout, 57)
    head = next(t for name, t in loaded["state_dict"].items() if "lm_head" in name)
    embedding = next(t for name, t in loaded["state_dict"].items() if "embed_tokens" in name)
    assert head.data_ptr() == embedding.data_ptr()
    with open_checkpoint(path, geometry=tiny_geometry, lora=LoraSettings(16)) as checkpoint:
        assert np.array_equal(checkpoint.read("model.embed_tokens.weight"), embedding.numpy())


def test_transformers_reads_the_folder(random_checkpoint, tiny_geometry, tmp_path):
    from transformers import Qwen2_5_VLForConditionalGeneration

    random_checkpoint.write_hf_folder(tmp_path, tiny_geometry, 7, shard_bytes=60_000)
    model, report = Qwen2_5_VLForConditionalGeneration.from_pretrained(
        tmp_path, output_loading_info=True
    )
    assert not any(report.values())
    table = random_checkpoint.RandomWeights(7).values("model.embed_tokens.weight", (200, 48))
    assert np.array_equal(model.lm_head.weight.detach().float().numpy(), table)


def test_values_depend_on_seed_and_name_and_have_the_scale(random_checkpoint):
    weights = random_checkpoint.RandomWeights(7, scale=0.5)
    first = weights.values("a.weight", (1000, 64))
    assert abs(first.std() - 0.5) < 0.01
    assert not np.array_equal(first, weights.values("b.weight", (1000, 64)))
    other = random_checkpoint.RandomWeights(8, scale=0.5).values("a.weight", (1000, 64))
    assert not np.array_equal(first, other)
    assert abs(weights.values("x.norm1.weight", (5000,)).mean() - 1) < 0.05
