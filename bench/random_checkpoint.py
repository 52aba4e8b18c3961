"""Random-weight checkpoints of any geometry, streamed to disk without torch.

Every value is exact in bfloat16, float16 and float32, and depends only on the seed, the scale and
the tensor's canonical name, so all files of one seed hold the same model. With LoRA the frozen base
is what is left of the same model after the adapters are taken out, again exactly.
"""

from __future__ import annotations

import json
import pickle
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from autovla_rt.config import Geometry, LanguageGeometry, VisionGeometry
from autovla_rt.export.tensors.model_names import EMBEDDING, LM_HEAD, expected_shapes

GEOMETRY_3B = Geometry(
    vision=VisionGeometry(
        depth=32,
        hidden_size=1280,
        num_heads=16,
        intermediate_size=3420,
        out_hidden_size=2048,
        fullatt_block_indexes=(7, 15, 23, 31),
    ),
    language=LanguageGeometry(
        hidden_size=2048,
        num_hidden_layers=36,
        num_attention_heads=16,
        num_key_value_heads=2,
        head_dim=128,
        intermediate_size=11008,
        vocab_size=153713,
        rms_norm_eps=1e-6,
        rope_theta=1e6,
        mrope_section=(16, 24, 24),
        tie_word_embeddings=True,
    ),
)
"""AutoVLA: Qwen2.5-VL-3B with 2,048 action tokens."""

DEFAULT_SCALE = 0.02
LORA_RANK = 8
LORA_ALPHA = 16

# Prime, so that no row of a matrix repeats before as many rows as there are elements.
_BLOCK_LENGTH = 4194301
# With 8 significant bits (bfloat16) and this grid, sums with LoRA's deltas stay exact in float32.
_GRID = 2.0**-20
_LORA_MAGNITUDE = 2.0**-5

_NORM_SUFFIXES = ("norm1.weight", "norm2.weight", "ln_q.weight", "norm.weight", "layernorm.weight")
_LORA_SUFFIXES = tuple(f"self_attn.{part}_proj.weight" for part in "qkvo")

_DTYPES: dict[str, tuple[np.dtype[Any], str, str]] = {
    "float32": (np.dtype(np.float32), "F32", "FloatStorage"),
    "float16": (np.dtype(np.float16), "F16", "HalfStorage"),
    "bfloat16": (np.dtype(ml_dtypes.bfloat16), "BF16", "BFloat16Storage"),
}

Chunks = Iterator[NDArray[Any]]


class RandomWeights:
    """A model's values as chunks of one random block, read from a place that the name gives."""

    def __init__(self, seed: int, scale: float = DEFAULT_SCALE, dtype: str = "float32") -> None:
        self.dtype = _DTYPES[dtype][0]
        generator = np.random.default_rng(seed)
        normal = generator.standard_normal(_BLOCK_LENGTH, dtype=np.float32) * np.float32(scale)
        rounded = normal.astype(ml_dtypes.bfloat16).astype(np.float32)
        self._block = (np.round(rounded / _GRID) * _GRID).astype(self.dtype)

    def chunks(self, name: str, shape: tuple[int, ...]) -> Chunks:
        """Yield the flat values of a tensor in order, at most one block at a time."""
        count = int(np.prod(shape))
        position = zlib.crc32(name.encode()) % _BLOCK_LENGTH
        while count:
            chunk = self._block[position : position + count]
            yield self._around_one(chunk) if name.endswith(_NORM_SUFFIXES) else chunk
            count -= len(chunk)
            position = 0

    def values(self, name: str, shape: tuple[int, ...]) -> NDArray[Any]:
        """Return a whole tensor."""
        return np.concatenate(list(self.chunks(name, shape))).reshape(shape)

    def _around_one(self, chunk: NDArray[Any]) -> NDArray[Any]:
        shifted = (1 + chunk.astype(np.float32)).astype(ml_dtypes.bfloat16)
        return shifted.astype(self.dtype)


def write_hf_folder(
    folder: Path,
    geometry: Geometry,
    seed: int,
    dtype: str = "bfloat16",
    shard_bytes: int = 2_000_000_000,
    scale: float = DEFAULT_SCALE,
) -> None:
    """Write config.json (flat, as transformers 4.49 does) and model*.safetensors to a new folder.

    Args:
        folder: made if missing.
        geometry: shapes of the model.
        seed: of the weights.
        dtype: float32, float16 or bfloat16.
        shard_bytes: a file that would grow beyond this is followed by the next one.
        scale: standard deviation of the weights (norm weights lie around one).
    """
    folder.mkdir(parents=True, exist_ok=True)
    weights = RandomWeights(seed, scale, dtype)
    shards = _shards(expected_shapes(geometry), weights.dtype.itemsize, shard_bytes)
    names = [f"model-{i + 1:05}-of-{len(shards):05}.safetensors" for i in range(len(shards))]
    if len(shards) == 1:
        names = ["model.safetensors"]
    for file_name, shapes in zip(names, shards, strict=True):
        with open(folder / file_name, "wb") as file:
            _write_safetensors(file, shapes, weights, _DTYPES[dtype][1])
    if len(shards) > 1:
        weight_map = {
            name: file for file, shapes in zip(names, shards, strict=True) for name in shapes
        }
        sizes = [int(np.prod(shape)) for shape in expected_shapes(geometry).values()]
        metadata = {"total_size": sum(sizes) * weights.dtype.itemsize}
        _write_json(
            folder / "model.safetensors.index.json",
            {"metadata": metadata, "weight_map": weight_map},
        )
    write_config(folder, geometry, dtype)


def write_config(folder: Path, geometry: Geometry, dtype: str = "bfloat16") -> None:
    """Write config.json, flat as transformers 4.49 does, to an existing folder."""
    _write_json(folder / "config.json", _flat_config(geometry, dtype))


@dataclass(frozen=True)
class Layout:
    """How a training run names tensors: a prefix, and the canonical prefixes that it renames."""

    prefix: str
    renamed: tuple[tuple[str, str], ...] = ()
    lora: bool = False

    def name(self, canonical: str) -> str:
        """Return the stored name of a tensor."""
        for old, new in self.renamed:
            if canonical.startswith(old):
                canonical = new + canonical.removeprefix(old)
                break
        return self.prefix + canonical


LAYOUTS = {
    "old": Layout("autovla.vlm."),
    "new": Layout(
        "autovla.vlm.", (("visual.", "model.visual."), ("model.", "model.language_model."))
    ),
    "drivevla": Layout("drivevla.vlm."),
    "lora": Layout("autovla.vlm.base_model.model.", lora=True),
}


def write_lightning(
    path: Path,
    geometry: Geometry,
    seed: int,
    layout: str = "old",
    dtype: str = "float32",
    scale: float = DEFAULT_SCALE,
    hyper_parameters: dict[str, Any] | None = None,
) -> None:
    """Write a Lightning checkpoint that torch.load reads, with the head stored although tied.

    Args:
        path: the `.ckpt` file.
        geometry: shapes of the model.
        seed: of the weights.
        layout: a key of LAYOUTS; `lora` adds pairs of rank LORA_RANK and alpha LORA_ALPHA to
            q/k/v/o_proj, and the buffers of the GRPO module.
        dtype: float32, float16 or bfloat16; LoRA's base is exact in float32 alone.
        scale: standard deviation of the weights (norm weights lie around one).
        hyper_parameters: plain data to store beside the weights.

    Raises:
        ValueError: LoRA in another type than float32.
    """
    if LAYOUTS[layout].lora and dtype != "float32":
        raise ValueError("the lora layout needs float32")
    weights = RandomWeights(seed, scale, dtype)
    tensors = list(_lightning_tensors(geometry, weights, LAYOUTS[layout], _DTYPES[dtype][2]))
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("archive/data.pkl", _checkpoint_pickle(tensors, hyper_parameters or {}))
        archive.writestr("archive/byteorder", b"little")
        for tensor in tensors:
            if tensor.chunks is None:
                continue
            member = zipfile.ZipInfo(f"archive/data/{tensor.key}")
            member.file_size = tensor.count * tensor.itemsize
            with archive.open(member, "w") as file:
                _write_chunks(file, tensor.chunks())
        archive.writestr("archive/version", b"3\n")


@dataclass(frozen=True)
class _Tensor:
    """One entry of the state_dict; `chunks` is None where another entry owns the storage."""

    name: str
    shape: tuple[int, ...]
    key: str
    storage_class: str
    itemsize: int
    chunks: Callable[[], Chunks] | None

    @property
    def count(self) -> int:
        return int(np.prod(self.shape))


def _lightning_tensors(
    geometry: Geometry, weights: RandomWeights, layout: Layout, storage_class: str
) -> Iterator[_Tensor]:
    itemsize = weights.dtype.itemsize
    key = 0
    keys: dict[str, str] = {}
    for name, shape in expected_shapes(geometry).items():
        for stored, stored_shape, chunks in _stored(layout, weights, name, shape):
            yield _Tensor(stored, stored_shape, str(key), storage_class, itemsize, chunks)
            keys[name] = str(key)
            key += 1
    if geometry.language.tie_word_embeddings:
        shape = (geometry.language.vocab_size, geometry.language.hidden_size)
        yield _Tensor(layout.name(LM_HEAD), shape, keys[EMBEDDING], storage_class, itemsize, None)
    if layout.lora:
        for name, count, kind in _GRPO_BUFFERS:
            zeros = np.zeros(count, np.float32 if kind == "FloatStorage" else np.int64)
            yield _Tensor(name, (count,), str(key), kind, zeros.itemsize, partial(_once, zeros))
            key += 1


def _once(array: NDArray[Any]) -> Chunks:
    return iter([array])


_GRPO_BUFFERS = (
    ("training_reward_buffer", 100, "FloatStorage"),
    ("sliding_idx", 1, "LongStorage"),
    ("window_count", 1, "LongStorage"),
)


def _stored(
    layout: Layout, weights: RandomWeights, name: str, shape: tuple[int, ...]
) -> Iterator[tuple[str, tuple[int, ...], Callable[[], Chunks]]]:
    """Yield what one canonical tensor is stored as: itself, or base and adapters.

    Values are made when they are written, so that a whole model's plan takes no memory.
    """
    stored = layout.name(name)
    if not layout.lora or ".self_attn." not in name:
        yield stored, shape, lambda: weights.chunks(name, shape)
        return
    module, kind = stored.rsplit(".", 1)
    base = f"{module}.base_layer.{kind}"
    if kind == "bias":
        yield base, shape, lambda: weights.chunks(name, shape)
        return
    a, b = f"{module}.lora_A.default.weight", f"{module}.lora_B.default.weight"
    yield base, shape, lambda: iter([_lora_parts(weights, name, shape)[0]])
    yield a, (LORA_RANK, shape[1]), lambda: iter([_lora_parts(weights, name, shape)[1]])
    yield b, (shape[0], LORA_RANK), lambda: iter([_lora_parts(weights, name, shape)[2]])


def _lora_parts(
    weights: RandomWeights, name: str, shape: tuple[int, ...]
) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Return base [out, in], A [r, in] and B [out, r] that add up exactly to the tensor.

    A and B hold one power of two with signs, so B A is a small multiple of its square.
    """
    outputs, inputs = shape
    a = np.sign(weights.values(f"{name}.A", (LORA_RANK, inputs))) * np.float32(_LORA_MAGNITUDE)
    b = np.sign(weights.values(f"{name}.B", (outputs, LORA_RANK))) * np.float32(_LORA_MAGNITUDE)
    base = weights.values(name, shape) - np.float32(LORA_ALPHA / LORA_RANK) * (b @ a)
    return base, a, b


def _checkpoint_pickle(tensors: list[_Tensor], hyper_parameters: dict[str, Any]) -> bytes:
    """Write by hand what torch.save pickles (protocol 2), as torch is not needed for it."""
    state = _dict((tensor.name, _tensor(tensor)) for tensor in tensors)
    body = _dict([("state_dict", state), ("hyper_parameters", _plain(hyper_parameters))])
    return pickle.PROTO + b"\x02" + body + pickle.STOP


def _tensor(tensor: _Tensor) -> bytes:
    strides = [int(np.prod(tensor.shape[axis + 1 :])) for axis in range(len(tensor.shape))]
    storage = _tuple(
        _plain("storage"),
        _global("torch", tensor.storage_class),
        _plain(tensor.key),
        _plain("cpu"),
        _plain(tensor.count),
    )
    arguments = _tuple(
        storage + pickle.BINPERSID,
        _plain(0),
        _plain(tensor.shape),
        _plain(tuple(strides)),
        _plain(False),
        _global("collections", "OrderedDict") + pickle.EMPTY_TUPLE + pickle.REDUCE,
    )
    return _global("torch._utils", "_rebuild_tensor_v2") + arguments + pickle.REDUCE


def _plain(value: Any) -> bytes:
    """Pickle plain data without the frame of protocol header and stop."""
    return pickle.dumps(value, 2)[2:-1]


def _global(module: str, name: str) -> bytes:
    return pickle.GLOBAL + f"{module}\n{name}\n".encode()


def _tuple(*items: bytes) -> bytes:
    return pickle.MARK + b"".join(items) + pickle.TUPLE


def _dict(items: Iterable[tuple[str, bytes]]) -> bytes:
    pairs = b"".join(_plain(key) + value for key, value in items)
    return pickle.EMPTY_DICT + pickle.MARK + pairs + pickle.SETITEMS


def _shards(
    shapes: dict[str, tuple[int, ...]], itemsize: int, shard_bytes: int
) -> list[dict[str, tuple[int, ...]]]:
    """Split in order, a new shard wherever the next tensor would not fit."""
    shards: list[dict[str, tuple[int, ...]]] = [{}]
    filled = 0
    for name, shape in shapes.items():
        size = int(np.prod(shape)) * itemsize
        if shards[-1] and filled + size > shard_bytes:
            shards.append({})
            filled = 0
        shards[-1][name] = shape
        filled += size
    return shards


def _write_safetensors(
    file: IO[bytes], shapes: dict[str, tuple[int, ...]], weights: RandomWeights, code: str
) -> None:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in shapes.items():
        begin, end = end, end + int(np.prod(shape)) * weights.dtype.itemsize
        header[name] = {"dtype": code, "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    file.write(len(text).to_bytes(8, "little") + text)
    for name, shape in shapes.items():
        _write_chunks(file, weights.chunks(name, shape))


def _write_chunks(file: IO[bytes], chunks: Chunks) -> None:
    for chunk in chunks:
        file.write(np.ascontiguousarray(chunk).reshape(-1).view(np.uint8).data)


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2), "utf-8")


def _flat_config(geometry: Geometry, dtype: str) -> dict[str, Any]:
    language, vision = geometry.language.model_dump(), geometry.vision.model_dump()
    sections = language.pop("mrope_section")
    vision["in_chans"] = vision.pop("in_channels")
    return {
        "architectures": ["Qwen2_5_VLForConditionalGeneration"],
        "model_type": "qwen2_5_vl",
        "hidden_act": "silu",
        "torch_dtype": dtype,
        "max_position_embeddings": 128000,
        "use_sliding_window": False,
        **language,
        "rope_scaling": {"type": "mrope", "mrope_section": sections},
        "vision_config": {"hidden_act": "silu", **vision},
    }
