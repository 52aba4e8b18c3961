"""Calibrating a checkpoint, and its weights as a calibrated precision rounds them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from autovla_rt.bundle import CalibrationUsed
from autovla_rt.config import Camera, CompiledPrompt
from autovla_rt.export.calibration.calibrated_weights import CalibratedWeights
from autovla_rt.export.calibration.collect import Plan, collect
from autovla_rt.export.calibration.groups import Group, language_groups, vision_groups
from autovla_rt.export.calibration.record import CalibrationRecord, read_record, require_fitting
from autovla_rt.export.calibration.sample import Sample, set_identity
from autovla_rt.export.calibration.search import awq, smooth_quant
from autovla_rt.export.opened_model import OpenedModel
from autovla_rt.export.progress import Progress
from autovla_rt.export.settings import NUMBER_FORMATS, Settings
from autovla_rt.export.weight_source import WeightSource


def calibrate(
    model: OpenedModel,
    cameras: tuple[Camera, ...],
    prompt: CompiledPrompt,
    samples: Sequence[Sample],
    folder: Path,
    progress: Progress,
) -> None:
    """Write a calibration to `folder`, or go on with one that was interrupted.

    Raises:
        CalibrationError, StorageError: as `collect`.
    """
    progress.stage("checkpoint hash", None)
    fingerprint = model.checkpoint.fingerprint()
    progress.stage("scenes", None)
    record = CalibrationRecord(
        checkpoint=fingerprint,
        cameras=cameras,
        prompt=prompt,
        scenes=tuple(sample.token for sample in samples),
        scenes_sha256=set_identity(samples),
    )
    collect(Plan(model.weights(), model.geometry, record), samples, folder, progress)


def calibration_used(
    settings: Settings, fingerprint: str, cameras: tuple[Camera, ...], prompt: CompiledPrompt
) -> CalibrationUsed | None:
    """Return what a bundle says of its calibration; None without one.

    Raises:
        CalibrationError: it is of another checkpoint (sha256 `fingerprint`), layout or prompt.
    """
    if settings.calibration is None:
        return None
    record = read_record(settings.calibration)
    require_fitting(
        record, settings.calibration, checkpoint=fingerprint, cameras=cameras, prompt=prompt
    )
    vision, language = settings.chosen
    return CalibrationUsed(
        vision=vision,
        language=language,
        scenes=len(record.scenes),
        scenes_sha256=record.scenes_sha256,
    )


def vision_weights(model: OpenedModel, settings: Settings, progress: Progress) -> WeightSource:
    """Return the weights of which the vision tower is quantized."""
    groups = list(vision_groups(model.geometry.vision))
    return _rescaled(model, settings, settings.chosen[0], groups, progress)


def language_weights(model: OpenedModel, settings: Settings, progress: Progress) -> WeightSource:
    """Return the weights of which the language model and its heads are quantized."""
    groups = list(language_groups(model.geometry.language))
    return _rescaled(model, settings, settings.chosen[1], groups, progress)


def _rescaled(
    model: OpenedModel,
    settings: Settings,
    precision: str,
    groups: list[Group],
    progress: Progress,
) -> WeightSource:
    weights = model.weights(progress)
    if settings.calibration is None or precision not in NUMBER_FORMATS:
        return weights
    block = settings.int4_block if precision == "int4_awq" else None
    method = smooth_quant() if block is None else awq(block)
    calibrated = CalibratedWeights(weights, settings.calibration, block)
    progress.stage("rescaling", len(groups))
    calibrated.fit(model.weights(), groups, method, progress.advance)
    return calibrated
