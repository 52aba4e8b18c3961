"""What the user chose for an engine, and whether it can be built."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from autovla_rt.config import CAMERAS, Precision
from autovla_rt.errors import CapacityError, TargetError
from autovla_rt.export.graph.dialect import Dialect, dialect_of
from autovla_rt.export.targets import TARGETS, Target, check_target

PRECISIONS = {
    "fp32": ("fp32", "fp32"),
    "int8": ("int8", "int8"),
    "int8_sq": ("int8_sq", "int8_sq"),
    "int4": ("int8", "int4"),
    "int4_awq": ("int8_sq", "int4_awq"),
}
"""Precision of an engine -> (vision, language)."""

VISION_PRECISIONS = ("fp32", "int8", "int8_sq")
"""A vision tower in int4 loses too much."""

NUMBER_FORMATS = {"int8_sq": "int8", "int4_awq": "int4"}
"""Calibrated precision of a part -> the format that its weights are stored in."""

FULL_HD = (1920, 1080)

MAX_POSITIONS = 128_000
"""`max_position_embeddings` of Qwen2.5-VL-3B-Instruct, the longest sequence it was made for."""

INT4_BLOCKS = (16, 32, 64, 128, 256)
"""Block sizes that ONNX Runtime's MatMulNBits loads on a CPU (tried: 8, 100 and 512 do not)."""


@dataclass(frozen=True)
class Settings:
    """What the user chose for the engine.

    `precision` is a key of `PRECISIONS`, or VISION/LANGUAGE with the precision of each part;
    `frame_sizes` maps each camera to the (width, height) in pixels of the frames it delivers;
    `calibration` is the folder of a calibration, which some precisions need.
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
    calibration: Path | None = None

    @property
    def dialect(self) -> Dialect:
        """Of the target's backend."""
        return dialect_of(TARGETS[self.target].backend)

    @property
    def chosen(self) -> tuple[str, str]:
        """What was chosen for vision tower and language model, calibrated or not."""
        vision, _, language = self.precision.partition("/")
        return (vision, language) if language else PRECISIONS[self.precision]

    @property
    def parts(self) -> Precision:
        """Number format of each part."""
        vision, language = (NUMBER_FORMATS.get(of, of) for of in self.chosen)
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
        TargetError: an illegal target, precision or int4 block, or a precision that needs a
            calibration without one, or with one that it does not use.
        CapacityError: a KV capacity beyond the model's positions.
        DependencyError: the backend's library is missing.
    """
    parts = settings.precision.split("/")
    for part in parts:
        target = check_target(settings.target, part)
    if len(parts) > 2 or (len(parts) == 2 and parts[0] not in VISION_PRECISIONS):
        raise TargetError(
            f"precision {settings.precision}: expected one for both parts, or VISION/LANGUAGE with "
            f"{', '.join(VISION_PRECISIONS)} for the vision tower, as in int8_sq/int4_awq."
        )
    _check_calibration(settings)
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


def _check_calibration(settings: Settings) -> None:
    needed = not NUMBER_FORMATS.keys().isdisjoint(settings.chosen)
    if needed and settings.calibration is None:
        raise TargetError(
            f"precision {settings.precision}: expected --calibration, the folder that autovla-rt "
            f"calibrate wrote, got none.\nCalibrate first, or choose fp32, int8 or int4."
        )
    if settings.calibration is not None and not needed:
        raise TargetError(
            f"precision {settings.precision}: expected no --calibration, which it does not use, "
            f"got {settings.calibration}.\nLeave it out, or choose {' or '.join(NUMBER_FORMATS)}."
        )
