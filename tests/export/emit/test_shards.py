"""Shards are what safetensors reads, however their tensors were computed."""

import json

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open

from autovla_rt.export.emit.shards import Stored, write_shards
from autovla_rt.export.tensors.tensor_info import TensorInfo

TYPES = [np.dtype(of) for of in (np.int8, np.float16, np.float32, ml_dtypes.float8_e4m3fn)]


def stored(arrays, pieces=None):
    infos = {name: TensorInfo(array.shape, array.dtype) for name, array in arrays.items()}
    return Stored(infos, lambda: arrays.items() if pieces is None else pieces)


def read(path, names):
    with safe_open(path, "np") as file:
        return {name: file.get_tensor(name) for name in names}


@given(st.lists(st.tuples(st.sampled_from(TYPES[:3]), st.integers(1, 9)), min_size=1, max_size=6))
def test_every_mixture_of_types_is_read_back(tmp_path_factory, shapes):
    folder = tmp_path_factory.mktemp("shards")
    arrays = {
        f"t{index}": np.arange(size).astype(dtype) for index, (dtype, size) in enumerate(shapes)
    }
    write_shards(folder, [stored({name: array}) for name, array in arrays.items()])
    for name, array in read(folder / "model.safetensors", arrays).items():
        np.testing.assert_array_equal(array, arrays[name])
        assert array.dtype == arrays[name].dtype


def test_tensors_lie_at_multiples_of_their_elements_size(tmp_path):
    arrays = {f"t{index}": np.ones(3, of) for index, of in enumerate(TYPES)}
    write_shards(tmp_path, [stored(arrays)])
    content = (tmp_path / "model.safetensors").read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    for name, array in arrays.items():
        assert (8 + length + header[name]["data_offsets"][0]) % array.dtype.itemsize == 0, name
    assert header["t3"]["dtype"] == "F8_E4M3"


def test_pieces_of_several_tensors_may_alternate(tmp_path):
    weights, scales = np.arange(12, dtype=np.int8).reshape(4, 3), np.arange(4, dtype=np.float32)
    pieces = [
        *(("w", weights[:2]), ("s", scales[:2])),
        *(("w", weights[2:]), ("s", scales[2:])),
    ]
    write_shards(tmp_path, [stored({"w": weights, "s": scales}, pieces)])
    found = read(tmp_path / "model.safetensors", "ws")
    np.testing.assert_array_equal(found["w"], weights)
    np.testing.assert_array_equal(found["s"], scales)


def test_many_tensors_make_shards_with_an_index(tmp_path):
    arrays = {f"t{index}": np.full(100, index, np.float32) for index in range(5)}
    write_shards(tmp_path, [stored({name: of}) for name, of in arrays.items()], shard_bytes=900)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == 2000
    assert sorted(set(index["weight_map"].values())) == [
        f"model-0000{number}-of-00003.safetensors" for number in (1, 2, 3)
    ]
    for name, file in index["weight_map"].items():
        np.testing.assert_array_equal(read(tmp_path / file, [name])[name], arrays[name])


@pytest.mark.parametrize(
    "piece", [np.zeros(3, np.float32), np.zeros(5, np.float32), np.zeros(4, np.float16)]
)
def test_a_file_that_would_not_be_as_its_header_says_is_an_error(tmp_path, piece):
    with pytest.raises(ValueError, match="the header says"):
        write_shards(tmp_path, [stored({"a": np.zeros(4, np.float32)}, [("a", piece)])])
