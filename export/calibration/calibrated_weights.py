"""A checkpoint as calibrated precisions round it: channels rescaled, blocks clipped."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from autovla_rt.errors import TargetError
from autovla_rt.export.calibration.groups import Group
from autovla_rt.export.calibration.rescaled_weights import RescaledWeights
from autovla_rt.export.calibration.search import Method, clipped, rescaling
from autovla_rt.export.calibration.statistics import LayerInput, read_statistics
from autovla_rt.export.weight_source import HEAD, WeightSource

Float = NDArray[np.float32]


class CalibratedWeights(RescaledWeights):
    """Another checkpoint's weights, fitted to a calibration.

    Args:
        source: The checkpoint.
        statistics: Folder of the calibration.
        block: Of int4, whose blocks are clipped; None clips nothing.
    """

    def __init__(self, source: WeightSource, statistics: Path, block: int | None) -> None:
        super().__init__(source)
        self._statistics, self._block = statistics, block
        self._sites: dict[str, tuple[str, str, Float]] = {}
        self._seen = lru_cache(1)(self._read_step)

    def fit(
        self,
        unscaled: WeightSource,
        groups: Iterable[Group],
        method: Method,
        advance: Callable[[int], None],
    ) -> None:
        """Search how to rescale every group, reading the checkpoint through `unscaled`.

        `advance` is called with 1 after each.

        Raises:
            CalibrationError: the calibration's files are missing or damaged.
            TargetError: a layer's width is no multiple of the block.
        """
        for group in groups:
            site = group.readers[0]
            if self._block is not None and len(group.channels) % self._block:
                raise TargetError(
                    f"int4 block {self._block}: expected one that divides the "
                    f"{len(group.channels)} inputs of {site}. Choose one with --int4-block, or "
                    "another precision."
                )
            scale = rescaling(unscaled, group, self._seen(group.step)[site], method)
            self.rescale(group, scale)
            for reader in group.readers:
                self._sites[f"{reader}.weight"] = group.step, site, scale[group.channels]
            advance(1)

    def rows(self, name: str, start: int, stop: int) -> Float:
        """Rows [start, stop) of axis 0 as float32, rescaled and clipped.

        The rows of the head that stay in float32 are clipped nowhere.
        """
        rows = super().rows(name, start, stop)
        if self._block is None or name not in self._sites or name == f"{HEAD}.weight":
            return rows
        step, site, scale = self._sites[name]
        return clipped(rows, self._seen(step)[site].rows / scale, self._block)

    def _read_step(self, step: str) -> Mapping[str, LayerInput]:
        return read_statistics(self._statistics / f"{step}.safetensors")
