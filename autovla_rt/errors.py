"""Every error a user can cause, each class with an exit code of its own.

A message says what was expected, what was got, where it came from and what to do next.
Exit code 1 stays Python's own (a defect of ours), 2 stays Typer's (wrong usage).
"""

from __future__ import annotations


class AutovlaError(Exception):
    """Base of all errors shown to the user as one message without a traceback."""

    exit_code = 1


class InputError(AutovlaError):
    """Frames, scene JSON, speed, acceleration, instruction or a server's answer are unusable."""

    exit_code = 3


class CheckpointError(AutovlaError):
    """A checkpoint, its config or its tokenizer is unreadable, incomplete or of another shape."""

    exit_code = 4


class RecipeError(AutovlaError):
    """Prompt and answer format could not be read, or do not compile with the tokenizer."""

    exit_code = 5


class CodebookError(AutovlaError):
    """An action codebook is unreadable, unsafe or of another length."""

    exit_code = 6


class BundleError(AutovlaError):
    """An engine bundle is missing, truncated, altered or of a newer version."""

    exit_code = 7


class TargetError(AutovlaError):
    """A target, precision or backend that does not exist or does not go together."""

    exit_code = 8


class CapacityError(AutovlaError):
    """A request needs more sequence positions than the engine was built for."""

    exit_code = 9


class StorageError(AutovlaError):
    """The file system refused to read or write (disk full, no permission)."""

    exit_code = 10


class DependencyError(AutovlaError):
    """A library that the command needs is missing; the message names the pip line."""

    exit_code = 11


class LayoutError(AutovlaError):
    """An engine was compiled for other cameras or plans than those it is to drive with."""

    exit_code = 12


class MemoryShortageError(AutovlaError):
    """This machine has less free memory than an engine needs."""

    exit_code = 13


class CalibrationError(AutovlaError):
    """Scenes from which nothing can be calibrated, or a calibration that does not fit."""

    exit_code = 14


class GateError(AutovlaError):
    """An engine's plans differ from its reference's by more than the gate allows."""

    exit_code = 15


class FitError(AutovlaError):
    """No combination of precisions is as fast, small and close to the reference as was asked."""

    exit_code = 16


class DeviceError(AutovlaError):
    """A GPU, or its driver, refused what was asked of it."""

    exit_code = 17
