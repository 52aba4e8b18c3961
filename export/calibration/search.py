"""How much to rescale each channel: the exponents and clippings that lose least on real inputs.

Sources: SmoothQuant (arXiv 2211.10438, eq. 4): s = max|x|^a / max|w|^(1-a). AWQ (arXiv 2306.00978,
eq. 5): s = mean|x|^a, or, as its code and NVIDIA's ModelOpt have it, mean|x|^a / w^(1-a) with w how
large a column's weights are in their blocks on average; and clipping of each block's weights. The
exponent is searched for every group of layers, and "as it is" is always among the candidates, so
that on the calibration's own rows no group gets worse than by plain rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from autovla_rt.export.calibration.groups import Group
from autovla_rt.export.calibration.statistics import LayerInput
from autovla_rt.export.quantize import (
    INT8_MAX,
    SMALLEST_SCALE,
    int4_blockwise,
    int8_per_channel,
)
from autovla_rt.export.weight_source import WeightSource, matrix_chunks
from autovla_rt.machine import usable_cores

Float = NDArray[np.float32]

EXPONENTS = tuple(round(0.1 * step, 1) for step in range(1, 11))
SHARES = tuple(round(1 - 0.05 * step, 2) for step in range(1, 11))
"""Of a block's largest weight, at which weights are clipped."""

SEARCHED_SLICES, SLICE_ROWS = 8, 128
"""Of each layer's output rows, those that losses are compared on."""

LIMIT = np.float32(1e4)
"""Most that a channel is rescaled by."""


@dataclass(frozen=True)
class Method:
    """A way to quantize a product.

    Attributes:
        weights: Rounds [n, K] weights and gives them back in float32.
        inputs: Likewise the rows [R, K] of an input.
        sizes: How large each weight [n, K] is.
        mean_size: Whether the size of a column is the mean of its weights' or the largest.
        scales: From the largest and the mean |x| of each channel, the size of the weights that read
            it, and an exponent: what the channel may be divided by.
    """

    weights: Callable[[Float], Float]
    inputs: Callable[[Float], Float]
    sizes: Callable[[Float], Float]
    mean_size: bool
    scales: Callable[[Float, Float, Float, float], tuple[Float, ...]]


def smooth_quant() -> Method:
    """int8 weights by output channel, int8 inputs by row."""
    return Method(
        weights=_int8_rounded,
        inputs=_int8_rounded,
        sizes=np.abs,
        mean_size=False,
        scales=lambda largest, _mean, weight, a: (largest**a / weight ** (1 - a),),
    )


def awq(block: int) -> Method:
    """int4 weights by block of inputs; inputs as they are."""
    return Method(
        weights=lambda rows: int4_rounded(rows, block),
        inputs=lambda rows: rows,
        sizes=lambda rows: _share_of_block(rows, block),
        mean_size=True,
        scales=lambda _largest, mean, weight, a: (mean**a, mean**a / weight ** (1 - a)),
    )


def rescaling(source: WeightSource, group: Group, seen: LayerInput, method: Method) -> Float:
    """Return what to divide each row of a group's writers by, [largest row + 1]; 1 where no more.

    Args:
        source: The checkpoint.
        group: The layers.
        seen: Statistics of their input.
        method: How they are quantized.
    """
    count = int(group.channels.max()) + 1
    weight = _column_sizes(source, group, method)
    largest, mean, weight = (
        by_row(values, group.channels, count) for values in (seen.largest, seen.mean, weight)
    )
    known = (largest > 0) & (mean > 0) & (weight > 0)
    candidates = [np.ones(count, np.float32)]
    for exponent in EXPONENTS:
        for given in method.scales(largest[known], mean[known], weight[known], exponent):
            scale = np.ones(count, np.float32)
            scale[known] = balanced(given)
            candidates.append(scale)
    spread = [candidate[group.channels] for candidate in candidates]
    inputs = [method.inputs(seen.rows / scale) for scale in spread]
    lost, whole = np.zeros((len(candidates), len(seen.rows))), np.zeros(len(seen.rows))
    with ThreadPoolExecutor(usable_cores()) as pool:
        for chunk in _searched(source, group):
            exact = seen.rows @ chunk.T
            whole += _squares(exact)

            def loss(index: int, chunk: Float = chunk, exact: Float = exact) -> NDArray[np.float64]:
                rounded = method.weights(chunk * spread[index])
                return _squares(inputs[index] @ rounded.T - exact)

            lost += list(pool.map(loss, range(len(candidates))))
    return candidates[int((lost @ row_weights(whole)).argmin())]


def row_weights(squares: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return how much each row's loss counts, from the squared norms of rows.

    A few rows of a sequence are many times as large as others, and their loss with them; they would
    decide alone. So rows count by their share of loss, but small ones no more than the median.
    """
    least = max(float(np.median(squares)), float(np.finfo(np.float64).tiny))
    weights: NDArray[np.float64] = 1 / np.maximum(squares, least)
    return weights


def _squares(rows: Float) -> NDArray[np.float64]:
    squares: NDArray[np.float64] = np.einsum("rn,rn->r", rows, rows, dtype=np.float64)
    return squares


def _column_sizes(source: WeightSource, group: Group, method: Method) -> Float:
    """Return how large the weights of each column [K] are."""
    total, count = np.zeros(len(group.channels), np.float32), 0
    for chunk in matrix_chunks(source, group.readers):
        sizes = method.sizes(chunk)
        total = total + sizes.sum(axis=0) if method.mean_size else np.maximum(total, sizes.max(0))
        count += len(chunk)
    return total / np.float32(count) if method.mean_size else total


def balanced(scale: Float) -> Float:
    """Keep scales within `LIMIT` and put them around 1: largest times smallest is 1."""
    within: Float = np.clip(scale, 1 / LIMIT, LIMIT).astype(np.float32)
    within /= np.sqrt(within.max() * within.min())
    return within


def clipped(rows: Float, inputs: Float, block: int, rounded: Callable[[Float], Float]) -> Float:
    """Clip each block of weights [n, K] where that makes int4 lose least on inputs [R, K].

    `rounded` gives back what int4 makes of weights. A block's loss is d G d, with d what rounding
    changes and G = XᵀX of the block's inputs, whose rows are weighed as in `rescaling`.
    """
    weight = np.sqrt(row_weights(_squares(inputs))).astype(np.float32)
    inputs = inputs * weight[:, None]
    blocks = rows.shape[1] // block
    gram = np.einsum("rbi,rbj->bij", *(2 * [inputs.reshape(-1, blocks, block)]), optimize=True)
    pieces = np.array_split(rows, usable_cores())
    with ThreadPoolExecutor(len(pieces)) as pool:
        found = pool.map(lambda piece: _clipped(piece, gram, block, rounded), pieces)
        return np.concatenate(list(found))


def _clipped(rows: Float, gram: Float, block: int, rounded: Callable[[Float], Float]) -> Float:
    count, width = rows.shape
    grouped = rows.reshape(count, -1, block)
    limit = np.abs(grouped).max(axis=2, keepdims=True)
    best, least = rows, np.full((len(gram), count), np.inf)
    for share in (1.0, *SHARES):
        tried = np.clip(grouped, -share * limit, share * limit)
        lost = rounded(tried.reshape(count, width)).reshape(grouped.shape) - grouped
        by_block = lost.transpose(1, 0, 2)
        loss = np.einsum("bni,bni->bn", by_block @ gram, by_block)
        better = (loss < least).T[..., None]
        best = np.where(better, tried, best.reshape(grouped.shape))
        least = np.minimum(loss, least)
    clipped_rows: Float = best.reshape(count, width)
    return clipped_rows


def int4_rounded(rows: Float, block: int) -> Float:
    """Return what int4 makes of weights [n, K]."""
    packed, scales = int4_blockwise(rows, block)
    codes = np.stack([packed & 15, packed >> 4], axis=-1).reshape(*scales.shape, block)
    values: Float = (codes.astype(np.float32) - 8) * scales[..., None]
    return values.reshape(len(rows), -1)[:, : rows.shape[1]]


def _share_of_block(rows: Float, block: int) -> Float:
    """Return |w| as a share of its block's largest, [n, K]."""
    grouped = np.abs(rows).reshape(len(rows), -1, block)
    largest = np.maximum(grouped.max(axis=2, keepdims=True), SMALLEST_SCALE)
    shares: Float = grouped / largest
    return shares.reshape(rows.shape)


def _int8_rounded(rows: Float) -> Float:
    codes, scales = int8_per_channel(rows)
    rounded: Float = np.clip(codes, -INT8_MAX, INT8_MAX) * scales[:, None]
    return rounded


def _searched(source: WeightSource, group: Group) -> Iterator[Float]:
    """Yield the weights [n, K] that losses are compared on.

    Of a layer with many rows evenly spread slices: a loss is a sum over rows, and a thousand tell
    candidates apart as well as all (150,000 of a head).
    """
    for reader in group.readers:
        name = f"{reader}.weight"
        count, *width = source.shape(name)
        starts = range(0, count, SLICE_ROWS)
        if len(starts) > SEARCHED_SLICES:
            step = (count - SLICE_ROWS) / (SEARCHED_SLICES - 1)
            starts = range(0, count - SLICE_ROWS + 1, int(step))
        for start in starts:
            rows = source.rows(name, start, min(start + SLICE_ROWS, count))
            yield rows.reshape(len(rows), int(np.prod(width)))


def by_row(values: Float, channels: NDArray[np.int64], count: int) -> Float:
    """Return the largest value of the channels that share a row."""
    rows = np.zeros(count, np.float32)
    np.maximum.at(rows, channels, values)
    return rows
