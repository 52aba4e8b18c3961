"""From a checkpoint and its config to a TensorRT-LLM checkpoint."""

from __future__ import annotations

from pathlib import Path

from autovla_rt.config import Camera, is_vision
from autovla_rt.export.build import check_capacity, engine_prompt, prompt_positions
from autovla_rt.export.emit.trtllm_build import BuildLimits, build_script
from autovla_rt.export.emit.trtllm_checkpoint import emit_trtllm
from autovla_rt.export.emit.trtllm_mrope import emit_mrope
from autovla_rt.export.opened_model import OpenedModel
from autovla_rt.export.progress import Progress
from autovla_rt.export.settings import Settings
from autovla_rt.export.tensors.model_names import EMBEDDING
from autovla_rt.export.unified import elements_read, unified_weights
from autovla_rt.export.unified_settings import unified_choice


def export_trtllm(
    model: OpenedModel,
    settings: Settings,
    cameras: tuple[Camera, ...],
    folder: Path,
    progress: Progress,
) -> None:
    """Write a TensorRT-LLM checkpoint into `folder`, and all that its engine is used with.

    Raises:
        TargetError, CalibrationError: as `unified_weights`.
        CapacityError: prompt and answer do not fit the KV capacity.
        CheckpointError: a value that stays in float16 does not fit it.
    """
    prompt = engine_prompt(model, cameras)
    check_capacity(model, prompt, settings.kv_capacity)
    weights, formats = unified_weights(model, settings, progress)
    names = [name for name in model.checkpoint.names if not is_vision(name)]
    if model.geometry.language.tie_word_embeddings:
        names.append(EMBEDDING)  # it is the head, too
    precision = unified_choice(settings).language
    progress.stage("checkpoint", elements_read(model, names, formats.of))
    emit_trtllm(model, weights, formats, precision, settings.kv_capacity, folder)
    emit_mrope(model.geometry, prompt, cameras, settings.kv_capacity, folder)
    (folder / "prompt.json").write_text(prompt.model_dump_json(), "utf-8")
    (folder / "recipe.json").write_text(model.recipe.model_dump_json(indent=1), "utf-8")
    limits = BuildLimits(
        input_tokens=sum(prompt_positions(model, prompt).values()),
        sequence=settings.kv_capacity,
        visual_tokens=sum(video.count for video in prompt.videos),
    )
    (folder / "build.sh").write_text(build_script(settings.target, precision, limits), "utf-8")
