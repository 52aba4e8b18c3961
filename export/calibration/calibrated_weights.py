"""A checkpoint as calibrated precisions round it: channels rescaled, blocks clipped."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from autovla_rt.errors import TargetError
from autovla_rt.export.calibration.groups import Group
from autovla_rt.export.calibration.modelopt import ModelOpt, is_searched
from autovla_rt.export.calibration.rescaled_weights import RescaledWeights
from autovla_rt.export.calibration.search import (
    Method,
    awq,
    clipped,
    rescaling,
    smooth_quant,
)
from autovla_rt.export.calibration.statistics import (
    LayerInput,
    read_magnitudes,
    read_statistics,
)
from autovla_rt.export.graph.eager import kv_names
from autovla_rt.export.graph.float16 import INPUT, OUTPUT
from autovla_rt.export.weight_source import HEAD, WeightSource

Float = NDArray[np.float32]


METHODS: dict[str, Callable[[int], Method]] = {
    "int8_sq": lambda _block: smooth_quant(),
    "int4_awq": awq,
}
"""Calibrated precision -> how its channels are rescaled, given the int4 block."""


class CalibratedWeights(RescaledWeights):
    """Another checkpoint's weights, fitted to a calibration.

    Args:
        source: The checkpoint.
        groups: The linear layers that read one value.
        statistics: Folder of the calibration.
        precision_of: A layer's precision, by its name.
        int4_block: Of int4_awq, whose blocks are clipped.
        methods: Calibrated precision -> how its channels are rescaled, given the int4 block.
    """

    def __init__(
        self,
        source: WeightSource,
        groups: Iterable[Group],
        statistics: Path,
        precision_of: Callable[[str], str],
        int4_block: int,
        methods: Mapping[str, Callable[[int], Method]] = METHODS,
    ) -> None:
        super().__init__(source)
        self._methods = methods
        self._statistics, self._block = statistics, int4_block
        self._clips = True
        self._groups = list(groups)
        self._precision_of = precision_of
        self._sites = {
            reader: (group.step, group.readers[0])
            for group in self._groups
            for reader in group.readers
        }
        self._seen = lru_cache(1)(self._read_step)
        self._magnitudes = lru_cache(1)(self._read_magnitudes)

    def fit(
        self,
        unscaled: WeightSource,
        advance: Callable[[int], None],
        modelopt: ModelOpt | None = None,
    ) -> None:
        """Search how to rescale every group, reading the checkpoint through `unscaled`.

        `advance` is called with 1 after each. Where ModelOpt searches, nothing is clipped, as its
        INT4_AWQ_CFG has it.

        Raises:
            CalibrationError: the calibration's files are missing or damaged, or ModelOpt failed.
            TargetError: a layer's width is no multiple of the block.
        """
        self._clips = modelopt is None
        for group in self._groups:
            site = group.readers[0]
            if (method := self._method(site, len(group.channels))) is not None and group.writers:
                seen = self._seen(group.step)[site]
                if modelopt is not None and is_searched(group):
                    scale = modelopt.rescaling(unscaled, group, seen, self._precision_of(site))
                else:
                    scale = rescaling(unscaled, group, seen, method)
                self.rescale(group, scale)
            advance(1)

    def rows(self, name: str, start: int, stop: int) -> Float:
        """Rows [start, stop) of axis 0 as float32, rescaled and clipped.

        The rows of the head that stay in float32 are clipped nowhere.
        """
        rows = super().rows(name, start, stop)
        module = name.removesuffix(".weight")
        if module == HEAD or module not in self._sites:
            return rows
        if self._precision_of(module) != "int4_awq" or not self._clips:
            return rows
        step, site = self._sites[module]
        inputs = self._seen(step)[site].rows / self.read_scale(module)
        return clipped(rows, inputs, self._block, self._methods["int4_awq"](self._block).weights)

    def largest_input(self, module: str) -> Float:
        """[K] max |x| of each channel of a layer's input, as its rescaled weights expect it."""
        step, site = self._sites[module]
        return self._seen(step)[site].largest / self.read_scale(module)

    def largest_kv(self, layer: int) -> tuple[Float, Float]:
        """[kv_heads * head_dim] max |x| of a layer's keys, rotated, and of its rescaled values."""
        step = f"model.layers.{layer}"
        key, value = (self._seen(step)[name].largest for name in kv_names(layer))
        return key, value / self.written_scale(f"{step}.self_attn.v_proj.weight")

    def largest(self, value: str) -> float:
        """Return the largest |x| of a value by its name, as the rescaled weights make it."""
        module, _, kind = value.rpartition(".")
        seen = self._magnitudes(self._sites[module][0])[value]
        if kind == INPUT:
            seen = seen / self.read_scale(module)
        if kind == OUTPUT:
            seen = seen / self.written_scale(f"{module}.weight")
        return float(seen.max())

    def _method(self, site: str, width: int) -> Method | None:
        precision = self._precision_of(site)
        if precision == "int4_awq" and width % self._block:
            raise TargetError(
                f"int4 block {self._block}: expected one that divides the {width} inputs of "
                f"{site}. Choose one with --int4-block, or another precision."
            )
        return self._methods[precision](self._block) if precision in self._methods else None

    def _read_step(self, step: str) -> Mapping[str, LayerInput]:
        return read_statistics(self._statistics / f"{step}.safetensors")

    def _read_magnitudes(self, step: str) -> Mapping[str, Float]:
        return read_magnitudes(self._statistics / f"{step}.safetensors")
