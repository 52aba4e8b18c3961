import numpy as np
import pytest
from kernel_cases import VISION

from autovla_rt.config import Preprocessing
from autovla_rt.kernels.patchify import patchify
from autovla_rt.kernels.resample import HALF, resample, to_levels
from autovla_rt.kernels.resize_plan import (
    ALIGNMENT,
    TILE_PIXELS,
    level_values,
    plan_resize,
    to_digits,
)

SIZES = [((1080, 1920), (224, 420)), ((375, 1242), (168, 588)), ((12, 17), (28, 56))]


def test_digits_are_the_coefficient():
    taps = np.array([[[0, 1, -1, 127, 128, -128, -129, 1 << 22, -(1 << 20), 5_000_000]]], np.int32)
    digits = to_digits(taps)
    assert digits.dtype == np.int8
    assert digits.shape == (1, 3, 1, 10)
    np.testing.assert_array_equal((digits.T * 256.0 ** np.arange(3)[:, None]).sum(2).T[0], taps[0])


@pytest.mark.parametrize(("size", "resized"), SIZES)
def test_windows_lie_where_they_can_be_read(size, resized):
    plan = plan_resize(size, resized)
    assert plan.pitch % ALIGNMENT == 0
    assert 0 <= plan.pitch - 3 * size[1] < ALIGNMENT
    assert (plan.byte_starts % ALIGNMENT == 0).all()
    # What lies outside of a frame is multiplied by 0.
    for starts, digits, end in (
        (plan.byte_starts, plan.byte_digits, 3 * size[1]),
        (plan.row_starts, plan.row_digits, size[0]),
    ):
        outside = starts[:, None] + np.arange(digits.shape[-1]) >= end
        assert not digits.any(axis=(1, 2))[outside].any()


@pytest.mark.parametrize(("size", "resized"), SIZES[1:])
def test_sums_of_digits_and_bias_are_those_of_the_reference(size, resized):
    frame = np.random.default_rng(0).integers(0, 256, (1, *size, 3), dtype=np.uint8)
    plan = plan_resize(size, resized)
    across = resample(frame, (size[0], resized[1]))
    rows = np.pad(plan.pitched(frame)[0], ((0, 0), (0, plan.byte_digits.shape[-1])))
    for tile, start in enumerate(plan.byte_starts):
        window = rows[:, start : start + plan.byte_digits.shape[-1]].astype(np.int64) - 128
        digits = plan.byte_digits[tile].astype(np.int64)
        sums = sum(256**place * (window @ digit.T) for place, digit in enumerate(digits))
        levels = to_levels((sums + plan.byte_bias[tile]).astype(np.int32))
        pixels = across[0, :, tile * TILE_PIXELS : (tile + 1) * TILE_PIXELS]
        by_channel = levels[:, : 3 * TILE_PIXELS].reshape(size[0], 3, TILE_PIXELS)
        np.testing.assert_array_equal(
            by_channel[:, :, : pixels.shape[1]], np.moveaxis(pixels, 2, 1)
        )


def test_values_are_those_of_the_patches():
    preprocessing = Preprocessing(image_mean=(0.1, 0.5, 0.9), image_std=(0.3, 0.7, 2))
    frames = np.random.default_rng(0).integers(0, 256, (2, 28, 28, 3), dtype=np.uint8)
    looked_up = np.moveaxis(level_values(preprocessing, VISION)[np.arange(3), frames], 3, 1)
    patches = patchify(frames, preprocessing, VISION)[0, 0].reshape(3, 2, 14, 14)
    np.testing.assert_array_equal(looked_up[:, :, :14, :14].swapaxes(0, 1), patches)


def test_padding_of_rows_changes_nothing_else():
    frames = np.random.default_rng(0).integers(0, 256, (2, 5, 7, 3), dtype=np.uint8)
    pitched = plan_resize((5, 7), (28, 28)).pitched(frames)
    assert pitched.shape == (2, 5, 32)
    np.testing.assert_array_equal(pitched[:, :, :21].reshape(frames.shape), frames)


def test_the_rounding_half_is_in_the_bias():
    plan = plan_resize((28, 28), (28, 28))
    assert (plan.row_bias[0, :28] == (128 << 22) + HALF).all()
