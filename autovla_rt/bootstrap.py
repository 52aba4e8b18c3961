"""95 % intervals from 10,000 bootstrap resamples, the same every time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

RESAMPLES = 10_000


def mean_interval(values: Iterable[float]) -> list[float]:
    """Return [mean, low, high]; empty without values."""
    numbers = np.asarray(list(values), np.float64)
    return _interval(np.mean, numbers) if numbers.size else []


def ratio_interval(above: Sequence[float], below: Sequence[float]) -> list[float]:
    """Return [ratio of the means, low, high], paired; empty where it has no bounds.

    That is where `below` is 0 so often that a resample has a mean of 0.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = _interval(lambda a, b: a.mean() / b.mean(), _numbers(above), _numbers(below))
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


def _interval(statistic: Callable[..., float], *samples: Array) -> list[float]:
    rng = np.random.default_rng(0)
    count = len(samples[0])
    drawn = [
        statistic(*(sample[pick] for sample in samples))
        for pick in (rng.integers(count, size=count) for _ in range(RESAMPLES))
    ]
    return [round(float(v), 4) for v in (statistic(*samples), *np.percentile(drawn, [2.5, 97.5]))]
