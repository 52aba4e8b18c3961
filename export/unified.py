"""From a checkpoint and its config to a unified Hugging Face checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from math import prod
from pathlib import Path

from autovla_rt.errors import TargetError
from autovla_rt.export.calibration.calibrated_weights import CalibratedWeights
from autovla_rt.export.calibration.groups import Group, language_groups, vision_groups
from autovla_rt.export.calibration.modelopt import modelopt
from autovla_rt.export.calibration.static_methods import STATIC_METHODS
from autovla_rt.export.emit.unified_checkpoint import emit_checkpoint, linear_layers
from autovla_rt.export.graph.dialect import Formats
from autovla_rt.export.opened_model import OpenedModel
from autovla_rt.export.progress import Progress
from autovla_rt.export.quantize import FP4_BLOCK
from autovla_rt.export.settings import Settings
from autovla_rt.export.unified_settings import unified_choice
from autovla_rt.export.weight_source import WeightSource

READS = {"fp8": 2, "nvfp4": 3}
"""How often weights are read where a scale of all must be known first: in nvfp4 one of all layers
that are computed as one, about three."""

INT4_OUTPUTS = 64
"""Rows that the readers' int4 kernels pack together (Edge-LLM's exporter refuses others)."""


def export_checkpoint(
    model: OpenedModel, settings: Settings, folder: Path, progress: Progress
) -> None:
    """Write the unified checkpoint into `folder`.

    Raises:
        TargetError, CalibrationError: as `unified_weights`.
        CheckpointError: a value that stays in float16 does not fit it.
    """
    weights, formats = unified_weights(model, settings, progress)
    progress.stage("checkpoint", elements_read(model, model.checkpoint.names, formats.of))
    emit_checkpoint(model, weights, formats, folder)


def unified_weights(
    model: OpenedModel, settings: Settings, progress: Progress
) -> tuple[WeightSource, Formats]:
    """Return the weights that are quantized, and the precision of every layer.

    Raises:
        TargetError: a layer cannot have the precision that was chosen for it.
        CalibrationError: the calibration's files are missing or damaged.
    """
    choice = unified_choice(settings)
    linear = frozenset(linear_layers(model))
    depth = model.geometry.vision.depth

    def precision_of(module: str) -> str:
        return choice.of(module, depth) if module in linear else "fp16"

    groups = [*vision_groups(model.geometry.vision), *language_groups(model.geometry.language)]
    _check_layers(model, groups, precision_of, settings.int4_block)
    weights = model.weights(progress)
    formats = Formats(precision_of, settings.int4_block, choice.kv)
    if settings.calibration is None:
        return weights, formats
    calibrated = CalibratedWeights(
        weights, groups, settings.calibration, precision_of, settings.int4_block, STATIC_METHODS
    )
    progress.stage("rescaling", len(groups))
    with modelopt(settings.modelopt, settings.int4_block) as searching:
        calibrated.fit(model.weights(), progress.advance, searching)
    return calibrated, replace(formats, ranges=calibrated)


def _check_layers(
    model: OpenedModel,
    groups: Iterable[Group],
    precision_of: Callable[[str], str],
    int4_block: int,
) -> None:
    """Refuse precisions that readers cannot have in a layer.

    They fuse layers that read one value into one, and int4 has blocks of whole width.
    """
    for group in groups:
        chosen = {reader: precision_of(reader) for reader in group.readers}
        if len(set(chosen.values())) > 1:
            listed = ", ".join(f"{name} in {precision}" for name, precision in chosen.items())
            raise TargetError(
                "expected one precision for layers that read one value, which are computed as one, "
                f"got {listed}.\nChoose the same for all of them."
            )
    for layer in linear_layers(model):
        count, width = model.checkpoint.shape(f"{layer}.weight")
        if precision_of(layer) == "nvfp4" and width % FP4_BLOCK:
            raise TargetError(
                f"precision nvfp4 of {layer}: expected inputs in blocks of {FP4_BLOCK}, got "
                f"{width}.\nChoose another precision for it, as in nvfp4,{layer}=fp16."
            )
        if precision_of(layer) == "int4_awq" and (width % int4_block or count % INT4_OUTPUTS):
            raise TargetError(
                f"precision int4_awq of {layer}: expected inputs in blocks of {int4_block} and "
                f"outputs in blocks of {INT4_OUTPUTS}, got {width} and {count}.\n"
                "Choose another precision for it and for the layers that read the same value, as "
                f"in int4_awq,{layer}=fp16."
            )


def elements_read(
    model: OpenedModel, names: Iterable[str], precision_of: Callable[[str], str]
) -> int:
    """Elements of tensors that are read, some more than once."""
    return sum(
        prod(model.checkpoint.shape(name))
        * READS.get(precision_of(name.removesuffix(".weight")), 1)
        for name in names
    )
