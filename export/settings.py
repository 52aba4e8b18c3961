"""What the user chose for an engine, and whether it can be built."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from autovla_rt.config import CAMERAS, TENSORRT_SINCE, Precision, is_vision
from autovla_rt.errors import CapacityError, TargetError
from autovla_rt.export.calibration.modelopt import modelopt_version
from autovla_rt.export.formats import (
    KV,
    NUMBER_FORMATS,
    PRECISIONS,
    VISION_PRECISIONS,
    Choice,
    number_format,
    read_choice,
)
from autovla_rt.export.graph.dialect import Dialect, dialect_name, dialect_of
from autovla_rt.export.targets import TARGETS, Target, check_target, find_target
from autovla_rt.versions import Version, dotted

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
    `calibration` is the folder of a calibration, which some precisions need and float16 values are
    held against;
    `modelopt` is the Python of ModelOpt's environment, where that is to search the scales;
    `tensorrt` is the device's version, for graphs that an older one takes; None is the newest.
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
    modelopt: Path | None = None
    tensorrt: Version | None = None

    @property
    def dialect_name(self) -> str:
        """What the target's graphs are written in."""
        return dialect_name(TARGETS[self.target].backend, self.tensorrt)

    @property
    def dialect(self) -> Dialect:
        """The same."""
        return dialect_of(self.dialect_name)

    @property
    def floats(self) -> str:
        """Float type that is computed in where nothing is quantized and no layer is fp32.

        A tower in fp32 makes it float32 everywhere; layers in fp32 are float32 by themselves.
        """
        towers = self.choice.vision, self.choice.language
        return "float32" if "fp32" in towers else self.dialect.floats

    def with_precision(self, precision: str) -> Settings:
        """Return the same in another precision, without the calibration where it needs none."""
        changed = replace(self, precision=precision)
        if changed.choice.is_calibrated:
            return changed
        return replace(changed, calibration=None, modelopt=None)

    @property
    def choice(self) -> Choice:
        """Precision of each part, calibrated or not."""
        return read_choice(self.precision)

    @property
    def parts(self) -> Precision:
        """Number format of each part."""
        choice = self.choice
        language = number_format(choice.language)
        activations = "fp16" if self.floats == "float16" else "fp32"
        others = [of for part, of in choice.overrides if not is_vision(part)]
        if {language, *others} != {"fp32"} and TARGETS[self.target].backend == "openvino":
            activations = "bf16"
        return Precision(
            vision=number_format(choice.vision),
            language=language,
            overrides={part: number_format(of) for part, of in choice.overrides},
            kv=choice.kv,
            int4_block=self.int4_block,
            activations=activations,
        )


def check_settings(settings: Settings) -> Target:
    """Refuse what cannot be exported, before any work.

    Raises:
        TargetError: an illegal target, precision or int4 block, or a precision that needs a
            calibration without one, or with one that nothing uses.
        CapacityError: a KV capacity beyond the model's positions.
        DependencyError: the backend's library is missing.
    """
    target = _check_precisions(settings)
    _check_tensorrt(settings, target)
    dialect = settings.dialect  # raises where its library is missing
    _check_formats(settings, dialect)
    kept = [of for of in target.kv if of in dialect.kv]
    _check_kv(settings, kept)
    _check_calibration(settings, dialect, kept)
    check_modelopt(settings, settings.choice)
    if settings.int4_block not in INT4_BLOCKS:
        raise TargetError(
            f"int4 block {settings.int4_block}: expected one of "
            f"{', '.join(map(str, INT4_BLOCKS))}. Choose one with --int4-block."
        )
    check_positions(settings)
    return target


def check_positions(settings: Settings) -> None:
    """Refuse a KV capacity beyond the model's positions.

    Raises:
        CapacityError: so it is.
    """
    if settings.kv_capacity > MAX_POSITIONS:
        raise CapacityError(
            f"KV capacity {settings.kv_capacity}: expected at most {MAX_POSITIONS}, the longest "
            "sequence that Qwen2.5-VL was made for. Choose less with --kv-capacity."
        )


def check_modelopt(settings: Settings, choice: Choice) -> None:
    """Refuse ModelOpt where it has nothing to search, or is not there.

    Raises:
        TargetError: no part has a precision whose scales are searched.
        DependencyError: as `modelopt_version`.
    """
    if settings.modelopt is None:
        return
    if {precision for _, precision in choice.named()}.isdisjoint(NUMBER_FORMATS):
        raise TargetError(
            f"precision {settings.precision}: expected no --modelopt, which has nothing to search "
            f"in it, got {settings.modelopt}.\nLeave it out, or choose {', '.join(NUMBER_FORMATS)}."
        )
    modelopt_version(settings.modelopt)


def _check_tensorrt(settings: Settings, target: Target) -> None:
    if settings.tensorrt is None:
        return
    given = dotted(settings.tensorrt)
    if dialect_name(target.backend) != "standard":
        raise TargetError(
            f"--tensorrt {given}: expected a target of TensorRT's, or cpu-standard, got "
            f"{settings.target}. Leave it out."
        )
    if settings.tensorrt < (oldest := min(TENSORRT_SINCE.values())):
        raise TargetError(
            f"--tensorrt {given}: expected {dotted(oldest)} (JetPack 6) or newer.\n"
            "Install a newer JetPack or TensorRT on the device."
        )


def _check_precisions(settings: Settings) -> Target:
    choice, target = settings.choice, find_target(settings.target)
    for part, precision in choice.named():
        if not (precision == "fp32" and part in dict(choice.overrides) and _has_half(target)):
            check_target(settings.target, precision)
        if is_vision(part) and precision not in VISION_PRECISIONS:
            legal = [of for of in VISION_PRECISIONS if of in target.precisions]
            raise TargetError(
                f"precision {settings.precision}: expected {', '.join(legal)} for the vision "
                f"tower, as in int8_sq/int4_awq, got {precision!r} for {part}."
            )
    return target


def _check_formats(settings: Settings, dialect: Dialect) -> None:
    for part, precision in settings.choice.named():
        if number_format(precision) not in dialect.formats:
            legal = TARGETS[settings.target].precisions
            possible = [of for of in legal if number_format(of) in dialect.formats]
            raise TargetError(
                f"precision {settings.precision}: {precision!r} is legal on {settings.target}, but "
                "cannot be exported by this version as ONNX; see autovla-rt export checkpoint. "
                f"Expected {', '.join(possible)} for {part}."
            )


def _check_kv(settings: Settings, legal: Sequence[str]) -> None:
    kept = settings.choice.kv
    if kept not in legal:
        raise TargetError(
            f"precision {settings.precision}: expected keys and values (kv) in "
            f"{' or '.join(legal)} on {settings.target}, got {kept!r}."
        )


def _check_calibration(settings: Settings, dialect: Dialect, kept: Sequence[str]) -> None:
    needed = _is_calibrated(settings.choice, dialect)
    bases = [of for of in PRECISIONS if of in TARGETS[settings.target].precisions]
    fitted = [of for of in bases if _is_calibrated(read_choice(of), dialect)]
    if needed and settings.calibration is None:
        raise TargetError(
            f"precision {settings.precision}: expected --calibration, the folder that autovla-rt "
            "calibrate wrote, got none.\nCalibrate first, or choose "
            f"{', '.join(of for of in bases if of not in fitted)}."
        )
    if settings.calibration is not None and not needed and settings.floats != "float16":
        fitted += [f"{KV}={of}" for of in kept if of != "auto"]
        raise TargetError(
            f"precision {settings.precision}: expected no --calibration, which it does not use, "
            f"got {settings.calibration}.\nLeave it out, or choose {', '.join(fitted)}."
        )


def _has_half(target: Target) -> bool:
    """Whether graphs for a target are float16, where a part may need float32."""
    return target.sm is not None


def _is_calibrated(choice: Choice, dialect: Dialect) -> bool:
    """Whether a precision can be had only with a calibration."""
    ranged = dialect.ranged
    return choice.is_calibrated or any(precision in ranged for _, precision in choice.named())
