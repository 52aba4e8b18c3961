from __future__ import annotations

import os

import pytest

from autovla_rt.errors import CheckpointError
from autovla_rt.export.files.safetensors_file import ShardedSafetensors


def test_reports_missing_shards_and_a_wrong_index(
    refusal, random_checkpoint, tiny_geometry, tmp_path
):
    random_checkpoint.write_hf_folder(tmp_path, tiny_geometry, 0, shard_bytes=60_000)
    index = tmp_path / "model.safetensors.index.json"
    text = index.read_text()
    index.write_text(text.replace('"model.norm.weight"', '"model.other.weight"'))
    message = refusal(tmp_path, tiny_geometry)
    assert "model.norm.weight in model-" in message
    assert "model.other.weight in model-" in message
    index.write_text(text.replace("model-00001-of", "../model-00001-of"))
    assert "beside the index" in refusal(tmp_path, tiny_geometry)
    index.write_text('{"weight_map": 3}')
    assert "weight_map" in refusal(tmp_path, tiny_geometry)
    index.write_text(text)
    (tmp_path / "model-00002-of-00005.safetensors").unlink()
    assert "model-00002-of-00005.safetensors: no such file" in refusal(tmp_path, tiny_geometry)


def test_reports_a_tensor_that_two_shards_hold(random_checkpoint, tiny_geometry, tmp_path):
    random_checkpoint.write_hf_folder(tmp_path, tiny_geometry, 0, shard_bytes=60_000)
    index = tmp_path / "model.safetensors.index.json"
    first, last = (f"model-0000{i}-of-00005.safetensors" for i in (1, 5))
    (tmp_path / last).write_bytes((tmp_path / first).read_bytes())
    with pytest.raises(CheckpointError, match="visual.patch_embed.proj.weight in " + last):
        ShardedSafetensors(index)


def test_reports_truncation(refusal, random_checkpoint, tiny_geometry, tmp_path):
    random_checkpoint.write_hf_folder(tmp_path, tiny_geometry, 0)
    weights = tmp_path / "model.safetensors"
    os.truncate(weights, weights.stat().st_size - 1)
    assert "truncated" in refusal(tmp_path, tiny_geometry)
    os.truncate(weights, 100)
    assert "expected a safetensors file" in refusal(tmp_path, tiny_geometry)
    weights.write_text("version https://git-lfs.github.com/spec/v1\n")
    assert "git-lfs" in refusal(tmp_path, tiny_geometry)


@pytest.mark.parametrize(
    ("entry", "shown"),
    [
        ('{"dtype":"F32","shape":[2],"data_offsets":[0,4]}', "takes 8 bytes, but the header gives"),
        ('{"dtype":"F32","shape":[1],"data_offsets":[-4,0]}', "bytes -4 to 0"),
        ('{"dtype":"F4","shape":[1],"data_offsets":[0,4]}', "a dtype among BF16"),
        ('{"dtype":"F32","shape":[1]}', "Expected shape, data_offsets"),
        ("[]", "the header entry of model.norm.weight is []"),
    ],
)
def test_reports_a_header_that_contradicts_itself(refusal, tiny_geometry, tmp_path, entry, shown):
    header = f'{{"model.norm.weight":{entry}}}'.encode()
    (tmp_path / "model.safetensors").write_bytes(
        len(header).to_bytes(8, "little") + header + bytes(8)
    )
    assert shown in refusal(tmp_path, tiny_geometry)
