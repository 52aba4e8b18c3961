"""Which modules write a backend's files."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from autovla_rt.config import Camera, Geometry, Precision
from autovla_rt.export.passes.prefix_kv import PrefixLayers
from autovla_rt.export.weight_source import WeightSource


@dataclass(frozen=True)
class Emitter:
    """How one backend's files are written.

    Attributes:
        vision: Writes the vision tower's graphs.
        language: Writes those of the language model and of the text head.
        libraries: Packages whose versions a bundle records.
    """

    vision: Callable[[WeightSource, Geometry, Sequence[Camera], Precision, Path], None]
    language: Callable[[WeightSource, Geometry, Precision, Path], None]
    libraries: tuple[str, ...]


LIBRARIES = {"ort": ("onnx", "onnxruntime"), "openvino": ("openvino",)}
"""Backend -> the libraries that its engines were built and run with."""


def emitter(backend: str) -> Emitter:
    """Return a backend's; its library is imported only now."""
    module = import_module(f"autovla_rt.export.emit.{backend}")
    return Emitter(module.emit_vision, module.emit_language, LIBRARIES[backend])


def prefix_layers(backend: str) -> PrefixLayers:
    """Return how a backend computes a prefix; imports what runs models, which takes a while."""
    layers: PrefixLayers = import_module(f"autovla_rt.export.emit.{backend}_prefix").prefix_layers
    return layers
