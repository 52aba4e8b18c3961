"""95 % intervals from 10,000 bootstrap resamples, the same every time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

RESAMPLES = 10_000
AT_ONCE = 1 << 22
"""Most numbers that are drawn at once."""

Statistic = Callable[..., Array]
"""Samples [..., n] -> [...]."""


def mean_interval(values: Iterable[float]) -> list[float]:
    """Return [mean, low, high]; empty without values."""
    numbers = np.asarray(list(values), np.float64)
    return _interval(_mean, numbers) if numbers.size else []


def ratio_interval(above: Sequence[float], below: Sequence[float]) -> list[float]:
    """Return [ratio of the means, low, high], paired; empty where it has no bounds.

    That is where `below` is 0 so often that a resample has a mean of 0.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = _interval(lambda a, b: _mean(a) / _mean(b), _numbers(above), _numbers(below))
    return ratio if np.isfinite(ratio).all() else []


def difference_interval(after: Sequence[float], before: Sequence[float]) -> list[float]:
    """Return [mean of the differences, low, high], paired."""
    return mean_interval(_numbers(after) - _numbers(before))


def interval_text(values: Sequence[float], unit: str = "") -> str:
    """Return [mean, low, high] for people."""
    mean, *ends = values
    return f"{mean:.3g}{unit} ({' to '.join(f'{end:.3g}' for end in ends)})"


def _numbers(values: Sequence[float]) -> Array:
    return np.asarray(values, np.float64)


def _mean(samples: Array) -> Array:
    means: Array = samples.mean(axis=-1)
    return means


def _interval(statistic: Statistic, *samples: Array) -> list[float]:
    rng = np.random.default_rng(0)
    count = len(samples[0])
    rows = max(AT_ONCE // count, 1)
    drawn = []
    for start in range(0, RESAMPLES, rows):
        picks = rng.integers(count, size=(min(rows, RESAMPLES - start), count))
        drawn.append(statistic(*(sample[picks] for sample in samples)))
    ends = np.percentile(np.concatenate(drawn), [2.5, 97.5])
    return [round(float(value), 4) for value in (statistic(*samples), *ends)]
