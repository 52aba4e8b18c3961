"""From a checkpoint and its config to an engine bundle."""

from __future__ import annotations

from dataclasses import dataclass, field
from importlib.metadata import version
from math import prod
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from autovla_rt.bundle import CheckpointRecord, Manifest
from autovla_rt.bundle_writer import bundle_writer, seal
from autovla_rt.config import (
    CAMERAS,
    ActionSpace,
    Camera,
    CompiledPrompt,
    Geometry,
    Precision,
    Preprocessing,
    Recipe,
    Template,
)
from autovla_rt.errors import CapacityError, TargetError
from autovla_rt.export.checkpoint import Checkpoint
from autovla_rt.export.choice import choice_ids
from autovla_rt.export.codebook import write_codebook
from autovla_rt.export.emit.graphs import emit_language, emit_vision
from autovla_rt.export.emit.tables import emit_rotary, emit_tables
from autovla_rt.export.graph.dialect import Dialect, dialect_of
from autovla_rt.export.passes.prefix_kv import emit_prefix_kv, prefix_layers
from autovla_rt.export.progress import Progress
from autovla_rt.export.prompt import compile_prompt
from autovla_rt.export.targets import TARGETS, Target, check_target
from autovla_rt.export.tensors.model_names import EMBEDDING
from autovla_rt.export.weight_source import ModelWeights
from autovla_rt.kernels.resize import video_grid

PRECISIONS = {
    "fp32": ("fp32", "fp32"),
    "int8": ("int8", "int8"),
    "int4": ("int8", "int4"),
}
"""Precision of an engine -> (vision, language). A vision tower in int4 loses too much."""

FULL_HD = (1920, 1080)

VISION = "visual."
"""Prefix of the vision tower's tensors."""

SLOT_TOKENS = 64
"""Positions kept for what a request puts into the prompt: two numbers and a long instruction."""

MAX_POSITIONS = 128_000
"""`max_position_embeddings` of Qwen2.5-VL-3B-Instruct, the longest sequence it was made for."""

INT4_BLOCKS = (16, 32, 64, 128, 256)
"""Block sizes that ONNX Runtime's MatMulNBits loads on a CPU (tried: 8, 100 and 512 do not)."""


@dataclass(frozen=True)
class OpenedModel:
    """An opened checkpoint with all that belongs to it."""

    checkpoint: Checkpoint
    geometry: Geometry
    tokenizer: Tokenizer
    end_token_ids: tuple[int, ...]
    preprocessing: Preprocessing
    actions: ActionSpace
    codebook: NDArray[np.float32]
    recipe: Recipe
    use_cot: bool


@dataclass(frozen=True)
class Settings:
    """What the user chose for the engine.

    `frame_sizes` maps each camera to the (width, height) in pixels of the frames it delivers.
    """

    name: str
    target: str = "cpu"
    precision: str = "int8"
    int4_block: int = 128
    kv_capacity: int = 2048
    frame_sizes: dict[str, tuple[int, int]] = field(
        default_factory=lambda: dict.fromkeys(CAMERAS, FULL_HD)
    )
    notes: tuple[str, ...] = ()

    @property
    def dialect(self) -> Dialect:
        """Of the target's backend."""
        return dialect_of(TARGETS[self.target].backend)

    @property
    def parts(self) -> Precision:
        """Precision of each part."""
        vision, language = PRECISIONS[self.precision]
        in_bf16 = language != "fp32" and TARGETS[self.target].backend == "openvino"
        return Precision(
            vision=vision,
            language=language,
            int4_block=self.int4_block,
            activations="bf16" if in_bf16 else "fp32",
        )


def check_settings(settings: Settings) -> Target:
    """Refuse what cannot be built, before any work.

    Raises:
        TargetError: an illegal target, precision or int4 block.
        CapacityError: a KV capacity beyond the model's positions.
        DependencyError: the backend's library is missing.
    """
    target = check_target(settings.target, settings.precision)
    dialect_of(target.backend)  # raises where its library is missing
    if settings.int4_block not in INT4_BLOCKS:
        raise TargetError(
            f"int4 block {settings.int4_block}: expected one of "
            f"{', '.join(map(str, INT4_BLOCKS))}. Choose one with --int4-block."
        )
    if settings.kv_capacity > MAX_POSITIONS:
        raise CapacityError(
            f"KV capacity {settings.kv_capacity}: expected at most {MAX_POSITIONS}, the longest "
            "sequence that Qwen2.5-VL was made for. Choose less with --kv-capacity."
        )
    return target


def camera_layout(model: OpenedModel, settings: Settings) -> tuple[Camera, ...]:
    """Cameras in the order of the prompt, each with the grid of its frames."""
    return tuple(
        Camera(
            name=name,
            grid=video_grid(
                *settings.frame_sizes[name], model.preprocessing, model.geometry.vision
            ),
        )
        for name in CAMERAS
    )


def engine_prompt(model: OpenedModel, cameras: tuple[Camera, ...]) -> CompiledPrompt:
    """Compile the prompt that this checkpoint was trained with."""
    recipe = model.recipe
    return compile_prompt(
        model.tokenizer,
        recipe.prompt_cot if model.use_cot else recipe.prompt_direct,
        cameras,
        model.geometry,
        add_vision_id=recipe.add_vision_id,
    )


def export_vision(
    model: OpenedModel,
    settings: Settings,
    cameras: tuple[Camera, ...],
    folder: Path,
    progress: Progress,
) -> None:
    """Write the vision tower's graphs and weights into `folder`."""
    elements = sum(size for name, size in _sizes(model).items() if name.startswith(VISION))
    progress.stage("vision tower", elements)
    weights, precision = _weights(model, progress), settings.parts
    emit_vision(settings.dialect, weights, model.geometry, cameras, precision, folder)


def export_language(
    model: OpenedModel,
    settings: Settings,
    cameras: tuple[Camera, ...],
    folder: Path,
    progress: Progress,
) -> None:
    """Write the language model's graphs, heads, embeddings and rotary tables into `folder`."""
    prompt = engine_prompt(model, cameras)
    check_capacity(model, prompt, settings.kv_capacity)
    sizes = _sizes(model)
    head_again = sizes[EMBEDDING] if model.geometry.language.tie_word_embeddings else 0
    elements = sum(size for name, size in sizes.items() if not name.startswith(VISION))
    choice = choice_ids(model.tokenizer, model.recipe.answer) if model.use_cot else ()
    elements += head_again + len(choice) * model.geometry.language.hidden_size
    progress.stage("language model", elements)
    weights, precision = _weights(model, progress), settings.parts
    emit_language(settings.dialect, weights, model.geometry, precision, folder)
    emit_tables(weights, model.geometry, precision, choice, folder)
    path = folder / "rotary.safetensors"
    emit_rotary(model.geometry, prompt, cameras, settings.kv_capacity, path)


def build_engine(model: OpenedModel, settings: Settings, folder: Path, progress: Progress) -> None:
    """Write a whole engine bundle to `folder`, atomically.

    Raises:
        TargetError, CapacityError: as `check_settings`, before any work.
        CapacityError: prompt and answer do not fit the KV capacity.
        StorageError: the file system refused; what was in `folder` stays as it was.
    """
    target = check_settings(settings)
    cameras = camera_layout(model, settings)
    prompt = engine_prompt(model, cameras)
    check_capacity(model, prompt, settings.kv_capacity)
    with bundle_writer(folder) as building:
        export_vision(model, settings, cameras, building, progress)
        export_language(model, settings, cameras, building, progress)
        progress.stage("prompt prefix", model.geometry.language.num_hidden_layers)
        emit_prefix_kv(
            building,
            model.geometry.language,
            prompt,
            settings.parts,
            prefix_layers(target.backend),
            progress.advance,
        )
        progress.stage("checkpoint hash", None)
        fingerprint = model.checkpoint.fingerprint()
        progress.stage("bundle", None)
        # Not Tokenizer.save: on a full disk it raises Exception itself.
        (building / "tokenizer.json").write_text(model.tokenizer.to_str(pretty=True), "utf-8")
        (building / "recipe.json").write_text(model.recipe.model_dump_json(indent=1), "utf-8")
        (building / "prompt.json").write_text(prompt.model_dump_json(), "utf-8")
        write_codebook(model.codebook, building / "codebook.safetensors")
        manifest = Manifest(
            name=settings.name,
            target=settings.target,
            backend=target.backend,
            precision=settings.parts,
            geometry=model.geometry,
            cameras=cameras,
            preprocessing=model.preprocessing,
            actions=model.actions,
            use_cot=model.use_cot,
            end_token_ids=model.end_token_ids,
            kv_capacity=settings.kv_capacity,
            checkpoint=CheckpointRecord(path=str(model.checkpoint.path), sha256=fingerprint),
            library_versions={
                package: version(package)
                for package in (*settings.dialect.libraries, "numpy", "tokenizers")
            },
            notes=settings.notes,
        )
        seal(building, manifest)


def check_capacity(model: OpenedModel, prompt: CompiledPrompt, capacity: int) -> None:
    """Refuse a KV cache in which an answer without reasoning would not fit.

    Raises:
        CapacityError: it does not hold prompt, a request's values and the longest such answer.
    """
    answer = model.recipe.answer
    answers = (answer.fast, answer.slow) if model.use_cot else (answer.direct,)
    positions = {
        "before the last video's end": len(prompt.prefix_ids),
        "of text after it": _literal_tokens(model.tokenizer, prompt.tail),
        "kept for speed, acceleration and instruction": SLOT_TOKENS,
        "of answer": model.actions.num_poses
        + max(_literal_tokens(model.tokenizer, template) for template in answers),
    }
    needed = sum(positions.values())
    if needed > capacity:
        listed = ", ".join(f"{count} {part}" for part, count in positions.items())
        raise CapacityError(
            f"KV capacity {capacity}: expected at least {needed} positions ({listed}).\n"
            "Choose more with --kv-capacity; reasoning takes what is left."
        )


def _literal_tokens(tokenizer: Tokenizer, template: Template) -> int:
    return sum(
        len(tokenizer.encode(part, add_special_tokens=False).ids)
        for part in template
        if isinstance(part, str)
    )


def _weights(model: OpenedModel, progress: Progress) -> ModelWeights:
    return ModelWeights(
        model.checkpoint,
        tied=model.geometry.language.tie_word_embeddings,
        action_start_id=model.actions.action_start_id,
        progress=progress,
    )


def _sizes(model: OpenedModel) -> dict[str, int]:
    """Elements of every tensor of the checkpoint."""
    return {name: prod(model.checkpoint.shape(name)) for name in model.checkpoint.names}
