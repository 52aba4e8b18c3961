"""What a build needs to know of a dialect, whichever it is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Protocol

from autovla_rt.export.graph.ops import Ops
from autovla_rt.export.weight_file import WeightFile
from autovla_rt.export.weight_source import WeightSource


class GraphOps(Ops, Protocol):
    """A dialect's operations, which end up in a file."""

    def save(self, path: Path, name: str) -> None:
        """Write the graph."""
        ...


@dataclass(frozen=True)
class Dialect:
    """How one backend's graphs are written.

    Attributes:
        ops: Makes the operations of a graph, from a checkpoint, the file that its weights go to,
            their precision and the int4 block.
        suffix: Of a graph's file.
        keeps_weights: Whether graphs refer to that file, or have copied what they need of it.
        libraries: Packages whose versions a bundle records.
    """

    ops: Callable[[WeightSource, WeightFile, str, int], GraphOps]
    suffix: str
    keeps_weights: bool
    libraries: tuple[str, ...]


def dialect_of(backend: str) -> Dialect:
    """Return a backend's dialect; its library is imported only now."""
    dialect: Dialect = import_module(f"autovla_rt.export.graph.{backend}").DIALECT
    return dialect
