"""Which number formats a TensorRT-LLM checkpoint may have."""

from __future__ import annotations

from autovla_rt.errors import TargetError
from autovla_rt.export.settings import Settings, check_positions
from autovla_rt.export.targets import TARGETS, Target, check_target
from autovla_rt.export.unified_settings import (
    check_device,
    check_quantization,
    unified_choice,
)

PRECISIONS = ("fp16", "int8_sq", "int8_wo", "int4_awq", "fp8")


def check_trtllm(settings: Settings) -> Target:
    """Refuse a checkpoint that TensorRT-LLM has no engine for, before any work.

    It holds the language model alone, in one precision.

    Raises:
        TargetError: an illegal target or precision, or as `check_quantization`.
        DependencyError: as `check_quantization`.
        CapacityError: a KV capacity beyond the model's positions.
    """
    check_device(settings)
    choice = unified_choice(settings)
    for _, precision in choice.named():
        check_target(settings.target, precision)
    target = TARGETS[settings.target]
    legal = [name for name in PRECISIONS if name in target.precisions]
    if str(choice) not in [f"fp16/{name}" for name in legal]:
        raise TargetError(
            f"precision {settings.precision}: expected one of {', '.join(legal)} for the whole "
            f"language model in a TensorRT-LLM checkpoint for {settings.target}, got "
            f"{choice}.\nIt holds neither the vision tower nor scales of keys and values; "
            "autovla-rt export checkpoint writes one that does."
        )
    check_quantization(settings, choice)
    check_positions(settings)
    return target
