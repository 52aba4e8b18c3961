"""What is kept of a layer's input."""

import numpy as np
import pytest

from autovla_rt.errors import CalibrationError
from autovla_rt.export.calibration.statistics import (
    Collector,
    read_magnitudes,
    read_statistics,
    write_statistics,
)


def rows_of(seed, count=40, width=6):
    return np.random.default_rng(seed).standard_normal((count, width)).astype(np.float32)


def collected(parts, kept_rows=256, weights=None):
    collector = Collector(kept_rows)
    for index, part in enumerate(parts):
        of = np.ones(len(part), np.float32) if weights is None else weights[index]
        collector.add("a layer", part, of)
    return collector.result()["a layer"]


def test_channels_are_measured_over_all_batches():
    parts = [rows_of(0), 3 * rows_of(1, 7)]
    both = np.concatenate(parts)
    found = collected(parts)
    np.testing.assert_array_equal(found.largest, np.abs(both).max(axis=0))
    np.testing.assert_allclose(found.mean, np.abs(both).mean(axis=0), rtol=1e-5)
    assert len(found.rows) == 47


def test_a_mean_is_weighted():
    part = np.array([[1.0], [3.0]], np.float32)
    assert collected([part], weights=[np.array([3.0, 1.0], np.float32)]).mean == 1.5


def test_no_more_rows_are_kept_than_asked_for_however_many_batches():
    found = collected([rows_of(seed) for seed in range(20)], kept_rows=16)
    assert found.rows.shape == (16, 6)
    everything = np.concatenate([rows_of(seed) for seed in range(20)])
    assert all((everything == row).all(axis=1).any() for row in found.rows)


def test_rows_that_count_more_are_likelier_kept_and_the_same_in_every_run():
    part = rows_of(0, count=1000)
    weights = np.ones(1000, np.float32)
    weights[:20] = 200
    found = collected([part], kept_rows=32, weights=[weights])
    heavy = sum((part[:20] == row).all(axis=1).any() for row in found.rows)
    assert heavy >= 18
    again = collected([part], kept_rows=32, weights=[weights])
    np.testing.assert_array_equal(found.rows, again.rows)


def test_not_a_number_is_refused_with_the_layers_name():
    part = rows_of(0)
    part[3, 2] = np.nan
    with pytest.raises(CalibrationError, match="a layer: expected finite inputs, got NaN"):
        collected([part])


def test_a_dead_layer_is_refused_by_name():
    with pytest.raises(CalibrationError, match="a layer: expected inputs other than 0"):
        collected([np.zeros((5, 3), np.float32)])


def test_a_file_gives_back_what_was_written(tmp_path):
    part = np.concatenate([rows_of(0), 1e5 * rows_of(1)])  # beyond float16
    part[:, 4] = 0
    found = collected([part])
    sizes = {"a.layer.output": np.array([1, 1e6], np.float32)}
    write_statistics(tmp_path / "x.safetensors", {"a.layer": found}, sizes)
    (again,) = read_magnitudes(tmp_path / "x.safetensors").items()
    assert (again[0], again[1].tolist()) == ("a.layer.output", [1, 1e6])
    again = read_statistics(tmp_path / "x.safetensors")["a.layer"]
    np.testing.assert_array_equal(again.largest, found.largest)
    np.testing.assert_array_equal(again.mean, found.mean)
    np.testing.assert_allclose(again.rows, found.rows, atol=1e-3 * found.largest.max())


def test_a_damaged_or_missing_file_is_named(tmp_path):
    with pytest.raises(CalibrationError, match=r"x\.safetensors: expected statistics"):
        read_statistics(tmp_path / "x.safetensors")
    (tmp_path / "x.safetensors").write_bytes(b"damaged")
    with pytest.raises(CalibrationError, match="calibrate again"):
        read_statistics(tmp_path / "x.safetensors")
