"""Calibrating a checkpoint, and its weights as a calibrated precision rounds them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from autovla_rt.bundle import CalibrationUsed
from autovla_rt.config import Camera, CompiledPrompt
from autovla_rt.export.calibration.calibrated_weights import METHODS, CalibratedWeights
from autovla_rt.export.calibration.collect import Plan, collect
from autovla_rt.export.calibration.groups import Group, language_groups, vision_groups
from autovla_rt.export.calibration.modelopt import modelopt, modelopt_version
from autovla_rt.export.calibration.record import CalibrationRecord, read_record, require_fitting
from autovla_rt.export.calibration.sample import Sample, set_identity
from autovla_rt.export.calibration.static_methods import STATIC_METHODS
from autovla_rt.export.formats import number_format
from autovla_rt.export.graph.dialect import Formats
from autovla_rt.export.graph.float16 import RangeCheck
from autovla_rt.export.opened_model import OpenedModel
from autovla_rt.export.progress import Progress
from autovla_rt.export.settings import Settings
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
    return CalibrationUsed(
        precision=str(settings.choice),
        scenes=len(record.scenes),
        scenes_sha256=record.scenes_sha256,
        modelopt=None if settings.modelopt is None else modelopt_version(settings.modelopt),
    )


def vision_weights(
    model: OpenedModel, settings: Settings, progress: Progress
) -> tuple[WeightSource, Formats]:
    """Return the weights of which the vision tower is quantized, and how it is stored."""
    return _fitted(model, settings, vision_groups(model.geometry.vision), progress)


def language_weights(
    model: OpenedModel, settings: Settings, progress: Progress
) -> tuple[WeightSource, Formats]:
    """Return the weights of which the language model is quantized, and how it is stored."""
    return _fitted(model, settings, language_groups(model.geometry.language), progress)


def _fitted(
    model: OpenedModel, settings: Settings, groups: Iterable[Group], progress: Progress
) -> tuple[WeightSource, Formats]:
    weights = model.weights(progress)
    chosen = settings.choice.layers(model.geometry.vision.depth)
    formats = Formats(
        lambda module: number_format(chosen(module)),
        settings.int4_block,
        settings.choice.kv,
        floats=settings.floats,
        capacity=settings.kv_capacity,
    )
    if settings.calibration is None:
        return weights, formats
    listed = list(groups)
    methods = STATIC_METHODS if settings.dialect.ranged else METHODS
    calibrated = CalibratedWeights(
        weights, listed, settings.calibration, chosen, settings.int4_block, methods
    )
    progress.stage("rescaling", len(listed))
    with modelopt(settings.modelopt, settings.int4_block) as searching:
        calibrated.fit(model.weights(), progress.advance, searching)
    return calibrated, replace(formats, ranges=calibrated, half=RangeCheck(calibrated))
