"""What the user chose for an engine, and whether it can be built."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

from autovla_rt.config import CAMERAS, Precision, is_vision
from autovla_rt.errors import CapacityError, TargetError
from autovla_rt.export.formats import (
    NUMBER_FORMATS,
    VISION_PRECISIONS,
    Choice,
    number_format,
    read_choice,
)
from autovla_rt.export.graph.dialect import Dialect, dialect_of
from autovla_rt.export.targets import TARGETS, Target, check_target, require_buildable

FULL_HD = (1920, 1080)

MAX_POSITIONS = 128_000
"""`max_position_embeddings` of Qwen2.5-VL-3B-Instruct, the longest sequence it was made for."""

INT4_BLOCKS = (16, 32, 64, 128, 256)
"""Block sizes that ONNX Runtime's MatMulNBits loads on a CPU (tried: 8, 100 and 512 do not)."""


@dataclass(frozen=True)
class Settings:
    """What the user chose for the engine.

    `precision` is as `read_choice` takes it;
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

    def with_precision(self, precision: str) -> Settings:
        """Return the same in another precision, without the calibration where it needs none."""
        changed = replace(self, precision=precision)
        return changed if changed.choice.is_calibrated else replace(changed, calibration=None)

    @property
    def choice(self) -> Choice:
        """Precision of each part, calibrated or not."""
        return read_choice(self.precision)

    @property
    def parts(self) -> Precision:
        """Number format of each part."""
        choice = self.choice
        language = number_format(choice.language)
        others = [of for part, of in choice.overrides if not is_vision(part)]
        in_bf16 = {language, *others} != {"fp32"} and TARGETS[self.target].backend == "openvino"
        return Precision(
            vision=number_format(choice.vision),
            language=language,
            overrides={part: number_format(of) for part, of in choice.overrides},
            kv=choice.kv,
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
    choice = settings.choice
    for part, precision in choice.named():
        target = check_target(settings.target, precision)
        if is_vision(part) and precision not in VISION_PRECISIONS:
            raise TargetError(
                f"precision {settings.precision}: expected {', '.join(VISION_PRECISIONS)} for the "
                f"vision tower, as in int8_sq/int4_awq, got {precision!r} for {part}."
            )
    require_buildable(settings.target)
    if choice.kv not in target.kv:
        raise TargetError(
            f"precision {settings.precision}: expected keys and values (kv) in "
            f"{' or '.join(target.kv)} on {settings.target}, got {choice.kv!r}."
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
    needed = settings.choice.is_calibrated
    if needed and settings.calibration is None:
        raise TargetError(
            f"precision {settings.precision}: expected --calibration, the folder that autovla-rt "
            f"calibrate wrote, got none.\nCalibrate first, or choose fp32, int8, int8_wo or int4."
        )
    if settings.calibration is not None and not needed:
        raise TargetError(
            f"precision {settings.precision}: expected no --calibration, which it does not use, "
            f"got {settings.calibration}.\nLeave it out, or choose {', '.join(NUMBER_FORMATS)} or "
            "kv=int8."
        )
