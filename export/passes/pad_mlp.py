"""pad_mlp (exact): the inner width of gated MLPs, zero-padded to a multiple.

A format with a scale for each block of inputs needs a width that the block divides, and none
divides the vision tower's 3420. Rows of zeros for gate and up projection (weights and biases) make
inner channels that are silu(0) * 0 = 0, and columns of zeros of the down projection read them: the
sums are those of before, with zeros added. A block's scale does not change by zeros in it. Costs
3456/3420 = 1 % of the MLP with blocks of 128; saves keeping that MLP in a wider format.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from autovla_rt.export.weight_source import WeightSource

INNER_AXIS = {"gate_proj.weight": 0, "gate_proj.bias": 0, "up_proj.weight": 0, "up_proj.bias": 0}
INNER_AXIS |= {"down_proj.weight": 1}
"""Tensors of a gated MLP, and the axis that counts its inner channels."""


class PaddedMlps:
    """Another source's weights with wider MLPs where they are needed.

    Args:
        source: The weights.
        multiple_of: What the number of inputs of a layer, given by name, must be a multiple of.
    """

    def __init__(self, source: WeightSource, multiple_of: Callable[[str], int]) -> None:
        self._source = source
        self._multiple_of = multiple_of

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor, padded."""
        shape = list(self._source.shape(name))
        mlp, _, tensor = name.rpartition(".mlp.")
        if mlp and tensor in INNER_AXIS:
            axis = INNER_AXIS[tensor]
            shape[axis] += -shape[axis] % self._multiple_of(f"{mlp}.mlp.down_proj")
        return tuple(shape)

    def rows(self, name: str, start: int, stop: int) -> NDArray[np.float32]:
        """Rows [start, stop) of axis 0 as float32, padded."""
        inside = min(stop, self._source.shape(name)[0])
        rows = self._source.rows(name, min(start, inside), inside)
        shape = stop - start, *self.shape(name)[1:]
        return np.pad(rows, [(0, new - old) for new, old in zip(shape, rows.shape, strict=True)])
