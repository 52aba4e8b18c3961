"""A checkpoint as quantization reads it: channels rescaled, blocks clipped, for the same model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from autovla_rt.export.calibration.groups import Group
from autovla_rt.export.calibration.search import Method, clipped, rescaling
from autovla_rt.export.calibration.statistics import LayerInput, read_statistics
from autovla_rt.export.weight_source import HEAD, WeightSource

Float = NDArray[np.float32]


@dataclass(frozen=True)
class Read:
    """How a matrix's columns are rescaled, and what flows into them then."""

    scale: Float
    step: str
    site: str


class CalibratedWeights:
    """Another checkpoint's weights, rescaled group by group.

    Args:
        source: The checkpoint.
        statistics: Folder of a calibration.
        block: Of int4; None clips nothing.
    """

    def __init__(self, source: WeightSource, statistics: Path, block: int | None) -> None:
        self._source, self._statistics, self._block = source, statistics, block
        self._written: dict[str, Float] = {}
        self._read: dict[str, Read] = {}
        self._seen = lru_cache(1)(self._read_step)

    def rescale(
        self,
        unscaled: WeightSource,
        groups: Iterable[Group],
        method: Method,
        advance: Callable[[int], None],
    ) -> None:
        """Search how to rescale every group, reading the checkpoint through `unscaled`.

        `advance` is called with 1 after each.
        """
        for group in groups:
            site = group.readers[0]
            scale = rescaling(unscaled, group, self._seen(group.step)[site], method)
            for writer in group.writers:
                full = self._written.setdefault(
                    writer, np.ones(self._source.shape(writer)[0], np.float32)
                )
                full[: len(scale)] *= scale
            read = Read(scale[group.channels], group.step, site)
            self._read.update({f"{reader}.weight": read for reader in group.readers})
            advance(1)

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor."""
        return self._source.shape(name)

    def rows(self, name: str, start: int, stop: int) -> Float:
        """Rows [start, stop) of axis 0 as float32, rescaled."""
        rows = self._source.rows(name, start, stop)
        if (written := self._written.get(name)) is not None:
            rows = (rows.T / written[start:stop]).T
        if (read := self._read.get(name)) is not None:
            rows = rows * read.scale
            if self._block is not None and name != f"{HEAD}.weight":
                inputs = self._seen(read.step)[read.site].rows / read.scale
                rows = clipped(rows, inputs, self._block)
        return rows

    def _read_step(self, step: str) -> Mapping[str, LayerInput]:
        return read_statistics(self._statistics / f"{step}.safetensors")
