"""Which number formats a unified checkpoint may have: what its readers have.

The readers are TensorRT Edge-LLM 0.11 (on Jetson) and TensorRT-LLM's PyTorch backend.
"""

from __future__ import annotations

from dataclasses import replace

from autovla_rt.config import is_vision
from autovla_rt.errors import TargetError
from autovla_rt.export.formats import NUMBER_FORMATS, Choice, read_choice
from autovla_rt.export.settings import Settings, check_modelopt
from autovla_rt.export.targets import TARGETS, Target, check_target
from autovla_rt.export.weight_source import TEXT_HEAD

PRECISIONS = ("fp16", "int8_sq", "int8_wo", "int4_awq", "fp8", "nvfp4")
"""Of the language model; a name alone leaves the vision tower in fp16, which every reader has."""

VISION_PRECISIONS = ("fp16", "int8_sq", "fp8")

KV_FORMATS = ("auto", "fp8")

CALIBRATED = (*NUMBER_FORMATS, "fp8", "nvfp4")
"""Precisions that a calibration gives scales for."""

INT4_BLOCK = 128
"""The block of ModelOpt's INT4_AWQ_CFG, which both readers' kernels are made for."""

EDGE_LLM_SMS = (87, 110)
"""Compute capabilities whose reader is TensorRT Edge-LLM."""


def unified_choice(settings: Settings) -> Choice:
    """Return the precision of each part of a checkpoint.

    Raises:
        TargetError: it is not written like one.
    """
    return read_choice(settings.precision, {name: ("fp16", name) for name in PRECISIONS})


def engine_choice(settings: Settings) -> Choice:
    """Return the precision of each part of the engine that a reader makes of a checkpoint.

    Its text head is the embedding.

    Raises:
        TargetError: as `unified_choice`.
    """
    choice = unified_choice(settings)
    return replace(choice, overrides=(*choice.overrides, (TEXT_HEAD, "fp16")))


def check_unified(settings: Settings) -> Target:
    """Refuse a checkpoint that no reader on the target has, before any work.

    Raises:
        TargetError: an illegal target or precision, or a calibration that is missing or not used.
    """
    check_device(settings)
    choice = unified_choice(settings)
    for part, precision in choice.named():
        check_target(settings.target, precision)
        _check_part(settings, part, precision)
    target = TARGETS[settings.target]
    legal = [kv for kv in KV_FORMATS if kv in target.kv]
    if choice.kv not in legal:
        raise TargetError(
            f"precision {settings.precision}: expected keys and values (kv) in "
            f"{' or '.join(legal)} in a checkpoint for {settings.target}, got {choice.kv!r}."
        )
    check_quantization(settings, choice)
    return target


def check_device(settings: Settings) -> None:
    """Refuse a target whose engines read no checkpoints.

    Raises:
        TargetError: it is no NVIDIA device.
    """
    readers = [name for name, target in TARGETS.items() if target.sm is not None]
    if settings.target not in readers:
        raise TargetError(
            f"target {settings.target!r}: expected an NVIDIA device for a checkpoint, one of "
            f"{', '.join(readers)}. Choose one with --target."
        )


def _check_part(settings: Settings, part: str, precision: str) -> None:
    legal: tuple[str, ...] = VISION_PRECISIONS if is_vision(part) else PRECISIONS
    target = TARGETS[settings.target]
    legal = tuple(name for name in legal if name in target.precisions)
    if part == TEXT_HEAD:
        legal = ("fp16",)  # it is the embedding
    elif target.sm in EDGE_LLM_SMS:
        # Its parser knows no W8A16 and would take the integers for float16 weights.
        legal = tuple(name for name in legal if name != "int8_wo")
    if precision not in legal:
        raise TargetError(
            f"precision {settings.precision}: expected {', '.join(legal)} for {part} in a "
            f"checkpoint for {settings.target}, as in int4_awq or fp16/int4_awq, got "
            f"{precision!r}."
        )


def check_quantization(settings: Settings, choice: Choice) -> None:
    """Refuse what no kernel of the readers is made for, and help too much or too little for it.

    Raises:
        TargetError: an int4 block, a calibration that is missing or not used, an unused ModelOpt.
        DependencyError: ModelOpt was asked for and is not there.
    """
    if settings.int4_block != INT4_BLOCK:
        raise TargetError(
            f"int4 block {settings.int4_block}: expected {INT4_BLOCK} in a checkpoint. "
            "Leave --int4-block out."
        )
    chosen = {precision for _, precision in choice.named()}
    needed = choice.kv != "auto" or not chosen.isdisjoint(CALIBRATED)
    if needed and settings.calibration is None:
        raise TargetError(
            f"precision {settings.precision}: expected --calibration, the folder that autovla-rt "
            f"calibrate wrote, got none.\nCalibrate first, or choose fp16 or int8_wo."
        )
    if settings.calibration is not None and not needed:
        raise TargetError(
            f"precision {settings.precision}: expected no --calibration, which it does not use, "
            f"got {settings.calibration}.\nLeave it out, or choose {', '.join(CALIBRATED)} or "
            "kv=fp8."
        )
    check_modelopt(settings, choice)
