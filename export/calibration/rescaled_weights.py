"""A checkpoint's weights with channels rescaled: another set of numbers for the same model."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from autovla_rt.export.calibration.groups import Group
from autovla_rt.export.weight_source import WeightSource

Float = NDArray[np.float32]


class RescaledWeights:
    """Divides channels where they are written and multiplies the weights that read them."""

    def __init__(self, source: WeightSource) -> None:
        self._source = source
        self._written: dict[str, Float] = {}
        self._read: dict[str, Float] = {}

    def rescale(self, group: Group, scale: Float) -> None:
        """Divide the first rows of a group's writers by a scale [largest row + 1]."""
        for writer in group.writers:
            full = self._written.setdefault(
                writer, np.ones(self._source.shape(writer)[0], np.float32)
            )
            full[: len(scale)] *= scale
        read = scale[group.channels]
        self._read.update({f"{reader}.weight": read for reader in group.readers})

    def read_scale(self, module: str) -> Float | np.float32:
        """Return what a layer's inputs are divided by, [K] or 1."""
        return self._read.get(f"{module}.weight", np.float32(1))

    def written_scale(self, name: str) -> Float | np.float32:
        """Return what a tensor's rows are divided by, [rows] or 1."""
        return self._written.get(name, np.float32(1))

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor."""
        return self._source.shape(name)

    def rows(self, name: str, start: int, stop: int) -> Float:
        """Rows [start, stop) of axis 0 as float32, rescaled."""
        rows = self._source.rows(name, start, stop)
        if (written := self._written.get(name)) is not None:
            rows = (rows.T / written[start:stop]).T
        if (read := self._read.get(name)) is not None:
            rows = rows * read
        return rows
