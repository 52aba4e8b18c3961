"""What a calibration is of, so that it is never used with anything else."""

from __future__ import annotations

from pathlib import Path

from pydantic import ValidationError

from autovla_rt import __version__
from autovla_rt.config import Camera, CompiledPrompt, Model
from autovla_rt.errors import CalibrationError

RECORD = "calibration.json"
FORMAT_VERSION = 3


class CalibrationRecord(Model):
    """Where the statistics of a folder come from.

    Attributes:
        checkpoint: sha256 of its weights.
        scenes: Names of the scenes, in their order.
        scenes_sha256: Of everything that was read of them: patches, tokens, weights.
    """

    format_version: int = FORMAT_VERSION
    autovla_rt_version: str = __version__
    checkpoint: str
    cameras: tuple[Camera, ...]
    prompt: CompiledPrompt
    scenes: tuple[str, ...]
    scenes_sha256: str


def read_record(folder: Path) -> CalibrationRecord:
    """Read the record of a finished calibration.

    Raises:
        CalibrationError: there is none, or it is of another version.
    """
    path = folder / RECORD
    try:
        record = CalibrationRecord.model_validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        reason = "the file is missing" if isinstance(error, OSError) else str(error)
        raise CalibrationError(
            f"{path}: expected the record of a finished calibration, but {reason}.\n"
            "Run autovla-rt calibrate, or again with the same options if it was interrupted."
        ) from error
    if record.format_version != FORMAT_VERSION:
        raise CalibrationError(
            f"{path}: expected format version {FORMAT_VERSION}, got {record.format_version}, "
            f"written by autovla-rt {record.autovla_rt_version}. Calibrate again."
        )
    return record


def require_fitting(
    record: CalibrationRecord,
    folder: Path,
    *,
    checkpoint: str,
    cameras: tuple[Camera, ...],
    prompt: CompiledPrompt,
) -> None:
    """Refuse a calibration of something else than what is built.

    Raises:
        CalibrationError: the checkpoint, the cameras' frames or the prompt differ; both are named.
    """
    if record.checkpoint != checkpoint:
        raise CalibrationError(
            f"{folder}: expected a calibration of the checkpoint with sha256 {checkpoint}, got one "
            f"of {record.checkpoint}.\nCalibrate this checkpoint: autovla-rt calibrate."
        )
    if record.cameras != cameras:
        sizes = [
            ", ".join(f"{camera.name} {camera.grid}" for camera in of)
            for of in (cameras, record.cameras)
        ]
        raise CalibrationError(
            f"{folder}: expected a calibration with the patch grids {sizes[0]}, got {sizes[1]}.\n"
            "Calibrate with the same --frame-size."
        )
    if record.prompt != prompt:
        raise CalibrationError(
            f"{folder}: expected a calibration with this prompt, got one with another recipe.\n"
            "Calibrate with the same --recipe."
        )
