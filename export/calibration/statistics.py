"""What is kept of a linear layer's input: how large its channels are, and some of its rows.

Of other values (`export/graph/float16.py`) only how large their channels are.

A file holds one step of the model (a block, a layer), so that whoever quantizes it reads no more.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from autovla_rt.errors import CalibrationError
from autovla_rt.output_file import write_file

Float = NDArray[np.float32]

LARGEST, MEAN, ROWS, MAGNITUDE = ".largest", ".mean", ".rows", ".magnitude"
"""Ends of tensors' names: of a layer's input, and of how large another value is."""

KEPT_ROWS = 256
"""Rows of each input that searches compute with."""


@dataclass(frozen=True)
class LayerInput:
    """Statistics of one layer's input of K channels.

    Attributes:
        largest: [K] max |x|.
        mean: [K] weighted mean of |x|.
        rows: [R, K] some of the rows; the more a row counts the likelier it is among them.
    """

    largest: Float
    mean: Float
    rows: Float


class Collector:
    """Collects the inputs of one step's layers over any number of batches.

    Which rows are kept follows from the layer's name, so it is the same in every run. Of layers
    that read one value (gate and up projection) the first is kept.
    """

    def __init__(self, kept_rows: int = KEPT_ROWS) -> None:
        self._kept = kept_rows
        self._layers: dict[str, _Layer] = {}
        self.magnitudes: dict[str, Float] = {}
        """[C] max |x| of each channel of the values measured, by name."""

    def add(self, layer: str, rows: Float, weights: Float) -> None:
        """Look at some rows [M, K] of a layer's input, each of which counts `weights` [M].

        Raises:
            CalibrationError: a value is NaN or infinite.
        """
        if not np.isfinite(rows).all():
            raise CalibrationError(
                f"{layer}: expected finite inputs, got NaN or infinity from the calibration "
                "scenes. The checkpoint overflows on them: check it, or how the frames were "
                "preprocessed."
            )
        if layer not in self._layers:
            self._layers[layer] = _Layer.empty(layer, rows.shape[1])
        self._layers[layer].add(rows, weights, self._kept)

    def measure(self, value: str, largest: Float) -> None:
        """Take note of the largest |x| of each channel of a value [C] in some of its rows."""
        before = self.magnitudes.get(value)
        self.magnitudes[value] = largest if before is None else np.maximum(before, largest)

    def result(self) -> dict[str, LayerInput]:
        """Return every layer's statistics.

        Raises:
            CalibrationError: a layer's input was 0 throughout.
        """
        for name, layer in self._layers.items():
            if not layer.largest.any():
                raise CalibrationError(
                    f"{name}: expected inputs other than 0, got none from the calibration scenes. "
                    "The layer before it is dead, or the frames are empty."
                )
        return {
            name: LayerInput(layer.largest, layer.total / layer.weight, layer.rows)
            for name, layer in self._layers.items()
        }


@dataclass
class _Layer:
    rng: np.random.Generator
    largest: Float
    total: Float
    weight: np.float32
    rows: Float
    keys: Float
    """Of `rows`, ascending: those with the largest of all rows are kept."""

    @classmethod
    def empty(cls, name: str, width: int) -> _Layer:
        rng = np.random.default_rng(zlib.crc32(name.encode()))
        zeros = np.zeros(width, np.float32)
        nothing = np.zeros(0, np.float32)
        return cls(rng, zeros, zeros.copy(), np.float32(0), nothing.reshape(0, width), nothing)

    def add(self, rows: Float, weights: Float, kept: int) -> None:
        magnitudes = np.abs(rows)
        np.maximum(self.largest, magnitudes.max(axis=0), out=self.largest)
        self.total += weights @ magnitudes
        self.weight += weights.sum()
        # Weighted sampling without replacement (Efraimidis and Spirakis 2006): the largest keys.
        keys = (np.log(self.rng.random(len(rows))) / weights).astype(np.float32)
        chosen = np.argsort(keys)[-kept:]
        all_keys = np.concatenate([self.keys, keys[chosen]])
        order = np.argsort(all_keys)[-kept:]
        self.keys = all_keys[order]
        self.rows = np.concatenate([self.rows, rows[chosen]])[order]


def write_statistics(
    path: Path, layers: Mapping[str, LayerInput], magnitudes: Mapping[str, Float]
) -> None:
    """Write a step's statistics; rows in float16, as a share of their channel's largest value.

    Raises:
        StorageError: the file system refused.
    """
    tensors: dict[str, NDArray[np.generic]] = {
        f"{value}{MAGNITUDE}": largest for value, largest in magnitudes.items()
    }
    for name, layer in layers.items():
        tensors[f"{name}{LARGEST}"], tensors[f"{name}{MEAN}"] = layer.largest, layer.mean
        unit = np.where(layer.largest > 0, layer.largest, np.float32(1))
        tensors[f"{name}{ROWS}"] = (layer.rows / unit).astype(np.float16)
    write_file(path, save(tensors))


def read_statistics(path: Path) -> dict[str, LayerInput]:
    """Read what `write_statistics` wrote of the inputs.

    Raises:
        CalibrationError: the file is missing or no such file.
    """
    with _reading(path) as file:
        names = [name.removesuffix(ROWS) for name in file.keys() if name.endswith(ROWS)]  # noqa: SIM118
        return {name: _layer_input(file, name) for name in names}


def read_magnitudes(path: Path) -> dict[str, Float]:
    """Read what `write_statistics` wrote of the values' magnitudes: [C] max |x| by name.

    Raises:
        CalibrationError: as `read_statistics`.
    """
    with _reading(path) as file:
        names = [name for name in file.keys() if name.endswith(MAGNITUDE)]  # noqa: SIM118
        return {name.removesuffix(MAGNITUDE): file.get_tensor(name) for name in names}


def _layer_input(file: Any, name: str) -> LayerInput:
    largest, mean, rows = (file.get_tensor(f"{name}{end}") for end in (LARGEST, MEAN, ROWS))
    return LayerInput(largest, mean, rows.astype(np.float32) * largest)


@contextmanager
def _reading(path: Path) -> Iterator[Any]:
    """Open a step's file."""
    try:
        with safe_open(path, "numpy") as file:
            yield file
    except (OSError, SafetensorError) as error:
        raise CalibrationError(
            f"{path}: expected statistics of a calibration, got {error}.\n"
            "Run autovla-rt calibrate again, into a new folder."
        ) from error
