"""From a checkpoint and its config to an engine bundle."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import version
from math import prod
from pathlib import Path

from tokenizers import Tokenizer

from autovla_rt.bundle import MANIFEST, CheckpointRecord, Manifest, Quality
from autovla_rt.bundle_writer import bundle_writer, seal
from autovla_rt.config import CAMERAS, Camera, CompiledPrompt, Template
from autovla_rt.errors import CapacityError
from autovla_rt.export.calibrate import calibration_used, language_weights, vision_weights
from autovla_rt.export.choice import choice_ids
from autovla_rt.export.codebook import write_codebook
from autovla_rt.export.emit.gpu_kernels import emit_kernels
from autovla_rt.export.emit.graphs import emit_language, emit_vision
from autovla_rt.export.emit.tables import emit_rotary, emit_tables
from autovla_rt.export.opened_model import OpenedModel
from autovla_rt.export.passes.prefix_kv import emit_prefix_kv, prefix_layers
from autovla_rt.export.progress import Progress
from autovla_rt.export.prompt import compile_prompt
from autovla_rt.export.settings import Settings, check_settings
from autovla_rt.export.tensors.model_names import EMBEDDING
from autovla_rt.kernels.resize import video_grid

Judge = Callable[[Path], Quality]
"""Judges the bundle in a folder."""

VISION = "visual."
"""Prefix of the vision tower's tensors."""

SLOT_TOKENS = 64
"""Positions kept for what a request puts into the prompt: two numbers and a long instruction."""


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


def require_calibration(
    model: OpenedModel, settings: Settings, cameras: tuple[Camera, ...]
) -> None:
    """Refuse a calibration that is not of this model and these cameras.

    Raises:
        CalibrationError: it is of something else.
    """
    if settings.calibration is not None:
        fingerprint = model.checkpoint.fingerprint()
        calibration_used(settings, fingerprint, cameras, engine_prompt(model, cameras))


def export_vision(
    model: OpenedModel,
    settings: Settings,
    cameras: tuple[Camera, ...],
    folder: Path,
    progress: Progress,
) -> None:
    """Write the vision tower's graphs and weights into `folder`."""
    weights, formats = vision_weights(model, settings, progress)
    elements = sum(size for name, size in _sizes(model).items() if name.startswith(VISION))
    progress.stage("vision tower", elements)
    emit_vision(settings.dialect, weights, model.geometry, cameras, formats, folder)


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
    weights, formats = language_weights(model, settings, progress)
    progress.stage("language model", elements)
    emit_language(settings.dialect, weights, model.geometry, formats, folder)
    emit_tables(weights, model.geometry, settings.parts, choice, folder)
    path = folder / "rotary.safetensors"
    emit_rotary(model.geometry, prompt, cameras, settings.kv_capacity, path)


def build_engine(
    model: OpenedModel,
    settings: Settings,
    folder: Path,
    progress: Progress,
    judge: Judge | None = None,
) -> Manifest:
    """Write a whole engine bundle to `folder`, atomically.

    Args:
        model: The checkpoint.
        settings: What to build.
        folder: Where.
        progress: Is told how far it is.
        judge: Is shown the finished bundle before it takes its place; may write files into it.

    Returns:
        What the bundle says of itself.

    Raises:
        TargetError, CapacityError: as `check_settings`, before any work.
        CapacityError: prompt and answer do not fit the KV capacity.
        DependencyError: a GPU's kernels need Triton, which is missing.
        StorageError: the file system refused; what was in `folder` stays as it was.
    """
    target = check_settings(settings)
    cameras = camera_layout(model, settings)
    prompt = engine_prompt(model, cameras)
    check_capacity(model, prompt, settings.kv_capacity)
    progress.stage("checkpoint hash", None)
    fingerprint = model.checkpoint.fingerprint()
    calibration = calibration_used(settings, fingerprint, cameras, prompt)
    with bundle_writer(folder) as building:
        if target.sm is not None:
            progress.stage("GPU kernels", None)
            emit_kernels(model.geometry, target.sm, building)
        export_vision(model, settings, cameras, building, progress)
        export_language(model, settings, cameras, building, progress)
        if not settings.dialect.prefix_at_load:
            progress.stage("prompt prefix", model.geometry.language.num_hidden_layers)
            emit_prefix_kv(
                building,
                model.geometry.language,
                prompt,
                settings.parts,
                prefix_layers(target.backend),
                progress.advance,
            )
        progress.stage("bundle", None)
        # Not Tokenizer.save: on a full disk it raises Exception itself.
        (building / "tokenizer.json").write_text(model.tokenizer.to_str(pretty=True), "utf-8")
        (building / "recipe.json").write_text(model.recipe.model_dump_json(indent=1), "utf-8")
        (building / "prompt.json").write_text(prompt.model_dump_json(), "utf-8")
        write_codebook(model.codebook, building / "codebook.safetensors")
        manifest = Manifest(
            name=settings.name,
            target=settings.target,
            sm=target.sm,
            backend=target.backend,
            dialect=settings.dialect_name,
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
            calibration=calibration,
        )
        seal(building, manifest)
        if judge is not None:
            progress.stage("evaluation", None)
            manifest = manifest.model_copy(update={"quality": judge(building)})
            (building / MANIFEST).unlink()
            seal(building, manifest)
    return manifest


def check_capacity(model: OpenedModel, prompt: CompiledPrompt, capacity: int) -> None:
    """Refuse a KV cache in which an answer without reasoning would not fit.

    Raises:
        CapacityError: it does not hold prompt, a request's values and the longest such answer.
    """
    answer = model.recipe.answer
    answers = (answer.fast, answer.slow) if model.use_cot else (answer.direct,)
    positions = {
        **prompt_positions(model, prompt),
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


def prompt_positions(model: OpenedModel, prompt: CompiledPrompt) -> dict[str, int]:
    """Return the sequence positions of the longest prompt, by what takes them."""
    return {
        "before the last video's end": len(prompt.prefix_ids),
        "of text after it": _literal_tokens(model.tokenizer, prompt.tail),
        "kept for speed, acceleration and instruction": SLOT_TOKENS,
    }


def _literal_tokens(tokenizer: Tokenizer, template: Template) -> int:
    return sum(
        len(tokenizer.encode(part, add_special_tokens=False).ids)
        for part in template
        if isinstance(part, str)
    )


def _sizes(model: OpenedModel) -> dict[str, int]:
    """Elements of every tensor of the checkpoint."""
    return {name: prod(model.checkpoint.shape(name)) for name in model.checkpoint.names}
