"""From a checkpoint and its config to an engine bundle."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from autovla_rt.bundle import CheckpointRecord, Manifest, bundle_writer, seal
from autovla_rt.config import (
    CAMERAS,
    ActionSpace,
    Camera,
    CompiledPrompt,
    Geometry,
    Precision,
    Preprocessing,
    Recipe,
)
from autovla_rt.errors import CapacityError
from autovla_rt.export.checkpoint import Checkpoint
from autovla_rt.export.codebook import write_codebook
from autovla_rt.export.emit.ort import emit_language, emit_rotary, emit_vision
from autovla_rt.export.prompt import compile_prompt
from autovla_rt.export.targets import check_target
from autovla_rt.export.weight_source import ModelWeights
from autovla_rt.kernels.resize import video_grid

PRECISIONS = {
    "fp32": ("fp32", "fp32"),
    "int8": ("int8", "int8"),
    "int4": ("int8", "int4"),
}
"""Precision of an engine -> (vision, language). A vision tower in int4 loses too much."""

TAIL_TOKENS = 96
"""Positions kept for the last text of the prompt: numbers and a long instruction."""

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Model:
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
    frame_sizes: dict[str, tuple[int, int]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def parts(self) -> Precision:
        """Precision of each part."""
        vision, language = PRECISIONS[self.precision]
        return Precision(vision=vision, language=language, int4_block=self.int4_block)


def camera_layout(model: Model, settings: Settings) -> tuple[Camera, ...]:
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


def engine_prompt(model: Model, cameras: tuple[Camera, ...]) -> CompiledPrompt:
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
    model: Model, settings: Settings, cameras: tuple[Camera, ...], folder: Path
) -> None:
    """Write the vision tower's graphs and weights into `folder`."""
    emit_vision(_weights(model), model.geometry, cameras, settings.parts, folder)


def export_language(
    model: Model, settings: Settings, cameras: tuple[Camera, ...], folder: Path
) -> None:
    """Write the language model's graphs, heads, embeddings and rotary tables into `folder`."""
    prompt = engine_prompt(model, cameras)
    check_capacity(prompt, settings.kv_capacity)
    emit_language(_weights(model), model.geometry, settings.parts, folder)
    path = folder / "rotary.safetensors"
    emit_rotary(model.geometry, prompt, cameras, settings.kv_capacity, path)


def build_engine(model: Model, settings: Settings, folder: Path, progress: Progress) -> None:
    """Write a whole engine bundle to `folder`, atomically.

    Raises:
        TargetError: an illegal target or precision, before any work.
        CapacityError: the prompt does not fit the KV capacity.
        StorageError: the file system refused; what was in `folder` stays as it was.
    """
    target = check_target(settings.target, settings.precision)
    cameras = camera_layout(model, settings)
    prompt = engine_prompt(model, cameras)
    check_capacity(prompt, settings.kv_capacity)
    with bundle_writer(folder) as building:
        progress("vision tower")
        export_vision(model, settings, cameras, building)
        progress("language model")
        export_language(model, settings, cameras, building)
        progress("checkpoint hash")
        fingerprint = model.checkpoint.fingerprint()
        progress("bundle")
        model.tokenizer.save(str(building / "tokenizer.json"))
        (building / "recipe.json").write_text(model.recipe.model_dump_json(indent=1))
        (building / "prompt.json").write_text(prompt.model_dump_json())
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
                for package in ("onnx", "onnxruntime", "numpy", "tokenizers")
            },
            notes=settings.notes,
        )
        seal(building, manifest)


def check_capacity(prompt: CompiledPrompt, capacity: int) -> None:
    """Refuse a KV cache that the prompt alone would fill.

    Raises:
        CapacityError: it does not hold the constant prefix and a tail of `TAIL_TOKENS`.
    """
    needed = len(prompt.prefix_ids) + TAIL_TOKENS
    if needed > capacity:
        raise CapacityError(
            f"the prompt takes about {needed} positions ({len(prompt.prefix_ids)} up to the last "
            f"video), but --kv-capacity is {capacity}. Choose at least {needed + 64}, and more for "
            "reasoning."
        )


def _weights(model: Model) -> ModelWeights:
    return ModelWeights(
        model.checkpoint,
        tied=model.geometry.language.tie_word_embeddings,
        action_start_id=model.actions.action_start_id,
    )
