"""What a build needs to know of a dialect, whichever it is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from autovla_rt.config import TENSORRT_SINCE
from autovla_rt.export.graph.float16 import RangeCheck
from autovla_rt.export.graph.ops import Ops
from autovla_rt.export.weight_file import WeightFile
from autovla_rt.export.weight_source import WeightSource
from autovla_rt.versions import Version


class GraphOps(Ops, Protocol):
    """A dialect's operations, which end up in a file."""

    def save(self, path: Path, name: str) -> None:
        """Write the graph."""
        ...


class Ranges(Protocol):
    """What the values of a model were like on calibration scenes."""

    def largest_input(self, module: str) -> NDArray[np.float32]:
        """[K] max |x| of each channel of a linear layer's input."""
        ...

    def largest_kv(self, layer: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """[kv_heads * head_dim] max |x| of a layer's keys, rotated, and of its values."""
        ...


@dataclass(frozen=True)
class Formats:
    """Number formats of one graph.

    Attributes:
        of: Format of a linear layer's weights, by its name.
        int4_block: Inputs that share a scale in int4 and int8_wo.
        kv: Of the keys and values that are kept.
        ranges: Of a calibration; None without one.
        half: Is told what becomes float16, likewise.
        floats: What is not quantized, "float32" or, in the `standard` dialect alone, "float16".
        capacity: Positions of the kept keys and values, where a graph fixes them (the `standard`
            dialect's does); None leaves them to who runs it.
    """

    of: Callable[[str], str]
    int4_block: int = 128
    kv: str = "auto"
    ranges: Ranges | None = None
    half: RangeCheck | None = None
    floats: str = "float32"
    capacity: int | None = None

    @classmethod
    def uniform(cls, name: str, int4_block: int = 128) -> Formats:
        """Return one format for all layers."""
        return cls(lambda _module: name, int4_block)


@dataclass(frozen=True)
class Dialect:
    """How one backend's graphs are written.

    Attributes:
        ops: Makes the operations of a graph, from a checkpoint, the file that its weights go to,
            and their formats.
        suffix: Of a graph's file.
        keeps_weights: Whether graphs refer to that file, or have copied what they need of it.
        libraries: Packages whose versions a bundle records.
        formats: Of linear layers' weights that it can write.
        ranged: Those whose activation scales are static, so that they need a calibration's ranges.
        floats: What is computed in where nothing is quantized and no layer is fp32.
        kv: Number formats that keys and values can be kept in.
        prefix_at_load: Whether the device computes the prompt's prefix when an engine is loaded;
            otherwise the build does.
    """

    ops: Callable[[WeightSource, WeightFile, Formats], GraphOps]
    suffix: str
    keeps_weights: bool
    libraries: tuple[str, ...]
    formats: tuple[str, ...]
    ranged: tuple[str, ...] = ()
    floats: str = "float32"
    kv: tuple[str, ...] = ("auto",)
    prefix_at_load: bool = False


def dialect_name(backend: str, tensorrt: Version | None = None) -> str:
    """Return the name of a backend's dialect; that of TensorRT's depends on its version."""
    name = "standard" if backend == "tensorrt" else backend
    if name == "standard" and tensorrt is not None and tensorrt < TENSORRT_SINCE[name]:
        return "plain"
    return name


def dialect_of(name: str) -> Dialect:
    """Return a dialect by its name; its library is imported only now."""
    dialect: Dialect = import_module(f"autovla_rt.export.graph.{name}").DIALECT
    return dialect
