"""Rescaling and clipping lose no more than plain rounding, and much less where it matters."""

import numpy as np
import pytest

from autovla_rt.export.calibration import search
from autovla_rt.export.calibration.groups import Group
from autovla_rt.export.calibration.search import (
    awq,
    clipped,
    int4_rounded,
    rescaling,
    row_weights,
    smooth_quant,
)
from autovla_rt.export.calibration.statistics import LayerInput

K, N, R = 128, 96, 200


class Weights:
    """Two layers that read one value."""

    def __init__(self, seed=0):
        rng = np.random.default_rng(seed)
        self.matrices = {
            f"{name}.weight": rng.standard_t(4, (N, K)).astype(np.float32) for name in ("a", "b")
        }

    def shape(self, name):
        return self.matrices[name].shape

    def rows(self, name, start, stop):
        return self.matrices[name][start:stop]


def seen(rows):
    return LayerInput(np.abs(rows).max(axis=0), np.abs(rows).mean(axis=0), rows)


def with_outliers(seed=0, factor=60.0):
    rows = np.random.default_rng(seed).standard_normal((R, K)).astype(np.float32)
    rows[:, [3, 70]] *= factor
    return rows


def group(channels=None):
    return Group("s", ("a", "b"), ("norm.weight",), np.arange(K) if channels is None else channels)


def loss(weights, rows, scale, method):
    lost, whole = np.zeros(len(rows)), np.zeros(len(rows))
    for matrix in weights.matrices.values():
        exact = rows @ matrix.T
        off = method.inputs(rows / scale) @ method.weights(matrix * scale).T - exact
        lost += (off**2).sum(axis=1)
        whole += (exact**2).sum(axis=1)
    return float(lost @ row_weights(whole))


@pytest.mark.parametrize("method", [smooth_quant(), awq(32)], ids=["smooth_quant", "awq"])
def test_outliers_cost_less_than_by_plain_rounding(method):
    weights, rows = Weights(), with_outliers()
    scale = rescaling(weights, group(), seen(rows), method)
    plain = loss(weights, rows, np.ones(K, np.float32), method)
    assert loss(weights, rows, scale, method) < 0.5 * plain
    fresh = with_outliers(seed=9)
    assert loss(weights, fresh, scale, method) < 0.6 * loss(
        weights, fresh, np.ones(K, np.float32), method
    )


@pytest.mark.parametrize("method", [smooth_quant(), awq(32)], ids=["smooth_quant", "awq"])
@pytest.mark.parametrize("seed", range(4))
def test_it_is_never_worse_on_the_rows_that_it_saw(method, seed):
    weights = Weights(seed)
    rows = np.random.default_rng(seed).standard_normal((R, K)).astype(np.float32)
    scale = rescaling(weights, group(), seen(rows), method)
    plain = loss(weights, rows, np.ones(K, np.float32), method)
    assert loss(weights, rows, scale, method) <= plain * (1 + 1e-5)


def test_a_few_large_rows_do_not_decide_alone(monkeypatch):
    weights, rows = Weights(), with_outliers()
    large = 1e4 * np.random.default_rng(5).standard_normal((3, K)).astype(np.float32)
    both = LayerInput(seen(rows).largest, seen(rows).mean, np.concatenate([rows, large]))

    def loss_of_others():
        scale = rescaling(weights, group(), both, smooth_quant())
        return loss(weights, rows, scale, smooth_quant())

    fair = loss_of_others()
    best = loss(
        weights, rows, rescaling(weights, group(), seen(rows), smooth_quant()), smooth_quant()
    )
    assert fair < 1.1 * best
    monkeypatch.setattr(search, "row_weights", np.ones_like)
    assert loss_of_others() > 1.5 * fair


def test_channels_of_one_writer_are_rescaled_alike():
    channels = np.tile(np.arange(K // 4), 4)
    scale = rescaling(Weights(), group(channels), seen(with_outliers()), smooth_quant())
    assert scale.shape == (K // 4,)
    assert scale[3] == scale.max()  # which channels 3 and, for 70, 6 come from


def test_dead_channels_and_rows_that_no_channel_comes_from_stay():
    rows = with_outliers()
    rows[:, 5] = 0
    scale = rescaling(Weights(), group(np.arange(K) + 10), seen(rows), smooth_quant())
    assert scale.shape == (K + 10,)
    assert (scale[:10] == 1).all()
    assert scale[15] == 1


def test_clipping_pays_where_a_large_weight_meets_small_inputs():
    rng = np.random.default_rng(0)
    weights = rng.standard_normal((N, K)).astype(np.float32)
    weights[:, ::32] *= 8
    inputs = rng.standard_normal((R, K)).astype(np.float32)
    inputs[:, ::32] *= 0.01

    def off(rounded):
        return float((((rounded - weights) @ inputs.T) ** 2).sum())

    best = clipped(weights, inputs, 32, lambda rows: int4_rounded(rows, 32))
    assert off(int4_rounded(best, 32)) < 0.5 * off(int4_rounded(weights, 32))


def test_clipping_is_by_block_and_leaves_what_it_does_not_help():
    rng = np.random.default_rng(1)
    weights = rng.integers(-7, 8, (4, 64)).astype(np.float32)  # nothing is rounded
    weights[:, ::32] = -8
    inputs = rng.standard_normal((R, 64)).astype(np.float32)
    kept = clipped(weights, inputs, 32, lambda rows: int4_rounded(rows, 32))
    np.testing.assert_array_equal(kept, weights)


def test_rounding_is_what_the_engine_stores():
    rows = np.array([[-8.0, 7, 3.4, 0]], np.float32)
    np.testing.assert_array_equal(int4_rounded(rows, 4), [[-8, 7, 3, 0]])


class Counted(Weights):
    """Two layers, one of them with more rows than losses are compared on."""

    def __init__(self, rows):
        super().__init__()
        self.matrices["b.weight"] = np.random.default_rng(1).standard_t(4, (rows, K))
        self.matrices["b.weight"] = self.matrices["b.weight"].astype(np.float32)
        self.read = []

    def rows(self, name, start, stop):
        self.read.append((name, start, stop))
        return super().rows(name, start, stop)


@pytest.mark.parametrize("count", [1, 127, 128, 1000, 1024])
def test_losses_are_compared_on_every_row_of_a_small_layer_once(count):
    weights = Counted(count)
    chunks = list(search._searched(weights, group()))
    np.testing.assert_array_equal(
        np.concatenate(chunks), np.concatenate(list(weights.matrices.values()))
    )


@pytest.mark.parametrize("count", [1025, 2047, 11008, 151000])
def test_losses_are_compared_on_a_thousand_spread_rows_of_a_large_layer(count):
    weights = Counted(count)
    list(search._searched(weights, group()))
    slices = [(start, stop) for name, start, stop in weights.read if name == "b.weight"]
    assert sum(stop - start for start, stop in slices) == 1024
    ends = [0, *(edge for pair in slices for edge in pair), count]
    assert ends == sorted(ends)
    assert slices[0][0] == 0
    assert count - slices[-1][1] < 8


def test_a_thousand_rows_choose_as_all_would(monkeypatch):
    weights, rows = Counted(8000), with_outliers()
    few = rescaling(weights, group(), seen(rows), smooth_quant())
    monkeypatch.setattr(search, "SEARCHED_SLICES", 10**6)
    every = rescaling(weights, group(), seen(rows), smooth_quant())
    np.testing.assert_array_equal(few, every)
