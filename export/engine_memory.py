"""How much memory an NVIDIA engine takes on its target, and its compiler where that runs.

Told before any work, from the model's geometry alone.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import asdict, dataclass
from math import prod

from autovla_rt.config import KV_COPIES, Camera, Geometry, is_vision
from autovla_rt.errors import TargetError
from autovla_rt.export.formats import Choice, number_format
from autovla_rt.export.quantize import FP4_BLOCK
from autovla_rt.export.settings import Settings
from autovla_rt.export.targets import TARGETS
from autovla_rt.export.tensors.model_names import EMBEDDING, LM_HEAD, expected_shapes
from autovla_rt.export.weight_source import TEXT_HEAD
from autovla_rt.machine import free_memory

VISION, LANGUAGE = "vision", "language"

WEIGHT_BYTES = {
    "fp32": 4,
    "fp16": 2,
    "int8": 1,
    "int8_wo": 1,
    "fp8": 1,
    "int4": 0.5,
    "nvfp4": 0.5 + 1 / FP4_BLOCK,
}
"""Of an element of a matrix; int4 has a float16 scale a block beside it, nvfp4 one of a byte."""

SCALE_BYTES, EMBEDDING_BYTES, FLOAT_BYTES = 2, 2, 4
KV_BYTES = {"auto": 2, "int8": 1, "fp8": 1}

WORKSPACE = 1 << 30
"""CUDA context, kernels of the libraries and the workspace of the compiler's choices.

With it the estimate for Qwen3-VL-2B and 4B (int4 language, fp16 head and vision, 4,096 positions)
is 4.5 and 6.3 GB, where NVIDIA's benchmarks of Edge-LLM 0.9 tell 4.4 on Orin Nano and 5.9 on NX.
"""

RESERVE = 1 << 30
"""What a device keeps: on an Orin Nano 572 MiB that its Linux never sees, and Linux without a
desktop; on a card the driver."""

COMPILER_BYTES = (3, 4)
"""Least and most host memory for each parameter while an engine is compiled, whatever its precision
(TensorRT-Edge-LLM issue 30)."""


@dataclass(frozen=True)
class EngineMemory:
    """Bytes that an engine takes on its device, by what takes them."""

    vision: int
    language: int
    embeddings: int
    kv: int
    activations: int
    workspace: int = WORKSPACE

    @property
    def total(self) -> int:
        """All of it."""
        return sum(asdict(self).values())


def engine_memory(
    geometry: Geometry,
    choice: Choice,
    *,
    parts: Collection[str],
    patches: int,
    kv_capacity: int,
    kv_copies: int,
    int4_block: int,
) -> EngineMemory:
    """Estimate what an engine takes on an NVIDIA device.

    - weights: each matrix's elements at its precision, int4 with 2 bytes a block; norms and biases
      in float32; the text head is a matrix of its own where it shares the embedding's weights;
    - embeddings: vocabulary x hidden in float16;
    - keys and values: 2 x layers x KV heads x head_dim x positions, 2 bytes, or 1 in int8 and fp8,
      once or, in graphs for an old TensorRT, twice;
    - activations: rows x 2 x (hidden + intermediate) x 4 bytes: the residual stream and its norm,
      gate and up, in float32; rows are all patches of a request, and `kv_capacity` for a prefill;
    - `WORKSPACE`.

    Args:
        geometry: Of the model.
        choice: Precision of each part.
        parts: `VISION`, `LANGUAGE` or both: the engines that are counted.
        patches: Patches of all frames of a request.
        kv_capacity: Sequence positions of the KV cache.
        kv_copies: How often it is kept.
        int4_block: Inputs that share an int4 scale.
    """
    language, has_language = geometry.language, LANGUAGE in parts
    weights = _weights(geometry, choice, int4_block)
    position = language.kept_numbers
    rows = {VISION: patches, LANGUAGE: kv_capacity}
    widths = {
        VISION: geometry.vision.hidden_size + geometry.vision.intermediate_size,
        LANGUAGE: language.hidden_size + language.intermediate_size,
    }
    embeddings = language.vocab_size * language.hidden_size * EMBEDDING_BYTES
    return EngineMemory(
        vision=weights[VISION] if VISION in parts else 0,
        language=weights[LANGUAGE] if has_language else 0,
        embeddings=embeddings if has_language else 0,
        kv=kv_copies * position * kv_capacity * KV_BYTES[choice.kv] if has_language else 0,
        activations=sum(rows[part] * 2 * widths[part] * FLOAT_BYTES for part in parts),
    )


def require_room(
    geometry: Geometry,
    settings: Settings,
    choice: Choice,
    cameras: Iterable[Camera],
    parts: Collection[str],
) -> str:
    """Refuse an engine that has no room on its target; return what it takes, and its compiler.

    Args:
        geometry: Of the model.
        settings: What the user chose.
        choice: Precision of each part.
        cameras: Of a request.
        parts: `VISION`, `LANGUAGE` or both: what is exported.

    Raises:
        TargetError: as `check_fits`.
    """
    memory = engine_memory(
        geometry,
        choice,
        parts=parts,
        patches=sum(prod(camera.grid) for camera in cameras),
        kv_capacity=settings.kv_capacity,
        kv_copies=KV_COPIES[settings.dialect_name],
        int4_block=settings.int4_block,
    )
    check_fits(settings.target, settings.precision, memory)
    compiler = compiler_memory(geometry, parts)
    return memory_told(settings.target, memory, compiler, free_memory())


def check_fits(target: str, precision: str, memory: EngineMemory) -> None:
    """Refuse an engine that its target has no room for.

    Where a target's memory varies with the card, nothing is refused.

    Raises:
        TargetError: the engine takes more than the device has above `RESERVE`.
    """
    size = TARGETS[target].memory_gib
    if size is None or memory.total <= (size << 30) - RESERVE:
        return
    listed = ", ".join(f"{_gib(of)} {part}" for part, of in asdict(memory).items() if of)
    raise TargetError(
        f"precision {precision} on {target}: expected an engine of at most "
        f"{_gib((size << 30) - RESERVE)} GiB ({size} GiB less {_gib(RESERVE)} that the device "
        f"keeps), got about {_gib(memory.total)} GiB ({listed}).\nChoose fewer bits with "
        f"--precision, such as {TARGETS[target].recipe.precision}, or less --kv-capacity."
    )


def compiler_memory(geometry: Geometry, parts: Collection[str]) -> tuple[int, int]:
    """Return the least and most bytes of host memory that compiling the largest part takes.

    `COMPILER_BYTES` for each of its parameters: parts are compiled one after the other.
    """
    counted = dict.fromkeys(parts, 0)
    for name, shape in expected_shapes(geometry).items():
        if (part := VISION if is_vision(name) else LANGUAGE) in counted:
            counted[part] += prod(shape)
    least, most = COMPILER_BYTES
    return least * max(counted.values()), most * max(counted.values())


def memory_told(
    target: str, memory: EngineMemory, compiler: tuple[int, int], free: int | None
) -> str:
    """Say what an engine takes and what compiling it takes, beside what there is.

    Args:
        target: Name of the device.
        memory: What the engine takes there.
        compiler: Least and most bytes that its compiler takes.
        free: Bytes that are free on this machine, None where that is not known.
    """
    size = TARGETS[target].memory_gib
    least, most = map(_gib, compiler)
    has = "" if size is None else f" of {size}"
    here = "" if free is None else f", free here: {_gib(free)}"
    told = (
        f"memory on {target}: about {_gib(memory.total)}{has} GiB; where it is compiled: {least} "
        f"to {most} GiB{here}"
    )
    if size is not None and compiler[0] > (size << 30) - RESERVE:
        told += f". Compiling on {target} itself needs swap"
    return told


def _weights(geometry: Geometry, choice: Choice, int4_block: int) -> dict[str, int]:
    """Bytes of each part's weights, but for the embeddings."""
    shapes = expected_shapes(geometry)
    shapes[f"{TEXT_HEAD}.weight"] = shapes.pop(LM_HEAD, shapes[EMBEDDING])
    del shapes[EMBEDDING]
    per_element = {**WEIGHT_BYTES, "int4": WEIGHT_BYTES["int4"] + SCALE_BYTES / int4_block}
    weights = dict.fromkeys((VISION, LANGUAGE), 0.0)
    for name, shape in shapes.items():
        precision = choice.of(name.removesuffix(".weight"), geometry.vision.depth)
        size = FLOAT_BYTES if len(shape) == 1 else per_element[number_format(precision)]
        weights[VISION if is_vision(name) else LANGUAGE] += prod(shape) * size
    return {part: int(size) for part, size in weights.items()}


def _gib(count: int) -> str:
    return f"{count / 2**30:.1f}"
