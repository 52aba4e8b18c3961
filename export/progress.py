"""How an export tells how far it is; a command shows it, a library caller may ignore it."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Receives the stages of an export and the weights read in each."""

    def stage(self, name: str, elements: int | None) -> None:
        """Begin a stage that reads `elements` weights; None where that is not known."""
        ...

    def advance(self, elements: int) -> None:
        """Count weights read in the current stage."""
        ...


class NoProgress:
    """Shows nothing."""

    def stage(self, name: str, elements: int | None) -> None:
        """Ignore the stage."""

    def advance(self, elements: int) -> None:
        """Ignore the weights."""
