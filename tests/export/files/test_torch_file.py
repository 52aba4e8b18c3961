from __future__ import annotations

import os
import pickle
import zipfile
from pathlib import Path

import pytest
import torch

from autovla_rt.export.checkpoint import open_checkpoint


@pytest.fixture
def path(torch_files, tiny_state, tmp_path) -> Path:
    return torch_files.save_lightning(tmp_path / "x.ckpt", tiny_state, "autovla.vlm.")


def test_missing_file(refusal, tiny_geometry, tmp_path):
    assert "no such file" in refusal(tmp_path / "none.ckpt", tiny_geometry)


@pytest.mark.parametrize("kept", [0.2, 0.9, 0.9999])
def test_truncated(refusal, path, tiny_geometry, kept):
    os.truncate(path, int(path.stat().st_size * kept))
    assert "directory at the file's end is unreadable" in refusal(path, tiny_geometry)


@pytest.mark.parametrize("size", [0, 3])
def test_nearly_empty(refusal, path, tiny_geometry, size):
    os.truncate(path, size)
    assert "expected a zip written by torch.save" in refusal(path, tiny_geometry)


def test_compressed(refusal, path, torch_files, tiny_geometry):
    members = torch_files.read_members(path)
    torch_files.write_members(path, members, zipfile.ZIP_DEFLATED)
    assert "is compressed or encrypted" in refusal(path, tiny_geometry)


def test_repacked_without_compression_is_read(
    assert_equal_to_torch, path, torch_files, tiny_geometry, tiny_state
):
    torch_files.write_members(path, torch_files.read_members(path))
    with open_checkpoint(path, geometry=tiny_geometry) as checkpoint:
        assert_equal_to_torch(checkpoint, tiny_state)


def test_written_in_the_format_before_torch_1_6(refusal, path, tiny_geometry, tiny_state):
    torch.save({"state_dict": tiny_state}, path, _use_new_zipfile_serialization=False)
    message = refusal(path, tiny_geometry)
    assert "before version 1.6" in message
    assert "torch.save(torch.load(" in message


def test_without_state_dict(refusal, path, tiny_geometry, tiny_state):
    torch.save(tiny_state, path)
    assert "key state_dict" in refusal(path, tiny_geometry)


def test_state_dict_with_other_things_than_tensors(refusal, path, tiny_geometry):
    torch.save({"state_dict": {"extra_state": {"a": 1}}}, path)
    assert "state_dict['extra_state'] is dict" in refusal(path, tiny_geometry)


def test_zip_of_another_kind(refusal, path, torch_files, tiny_geometry):
    torch_files.write_members(path, {"readme.txt": b"hello"})
    assert "data.pkl" in refusal(path, tiny_geometry)


def test_big_endian(refusal, path, torch_files, tiny_geometry):
    members = torch_files.read_members(path)
    torch_files.write_members(path, {**members, "x/byteorder": b"big"})
    assert "'big'" in refusal(path, tiny_geometry)


def test_storage_missing_or_short(refusal, path, torch_files, tiny_geometry):
    members = torch_files.read_members(path)
    size = len(members["x/data/3"])
    torch_files.write_members(path, {k: v for k, v in members.items() if k != "x/data/3"})
    message = refusal(path, tiny_geometry)
    assert f"x/data/3 should have {size} bytes, got no such entry" in message
    torch_files.write_members(path, {**members, "x/data/3": bytes(size - 1)})
    message = refusal(path, tiny_geometry)
    assert f"x/data/3 should have {size} bytes, got {size - 1}" in message


def test_tensor_that_leaves_its_storage(refusal, path, torch_files, tiny_geometry):
    members = torch_files.read_members(path)
    # 47 of 48 elements at offset 0 -> at offset 2, one too far.
    vector = pickle.BININT1 + b"\x00" + pickle.BININT1 + b"\x30" + pickle.TUPLE1
    assert vector in members["x/data.pkl"]
    shifted = vector.replace(b"\x00", b"\x02", 1)
    members["x/data.pkl"] = members["x/data.pkl"].replace(vector, shifted, 1)
    torch_files.write_members(path, members)
    assert "leaves its storage" in refusal(path, tiny_geometry)


def test_pickle_that_runs_code_runs_none(refusal, path, torch_files, tiny_geometry, tmp_path):
    class Attack:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "attacked"),)

    torch_files.add_to_pickle(path, "callbacks", pickle.dumps(Attack(), 2))
    assert "mkdir" in refusal(path, tiny_geometry)
    assert not (tmp_path / "attacked").exists()


@pytest.mark.parametrize(
    "body", [b"", b"\x80\x02N", b"\x80\x02U\x01aQ.", b"\x80\x02(lp0\n0."], ids=repr
)
def test_broken_pickle(refusal, path, torch_files, tiny_geometry, body):
    members = torch_files.read_members(path)
    torch_files.write_members(path, {**members, "x/data.pkl": body})
    assert "data.pkl is not a pickle" in refusal(path, tiny_geometry)
