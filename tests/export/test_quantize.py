import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from autovla_rt.export.quantize import int4_blockwise, int8_per_channel, nvfp4, nvfp4_scale

matrices = arrays(
    np.float32,
    st.tuples(st.integers(1, 5), st.integers(1, 70)),
    elements=st.floats(-50, 50, width=32),
)


def dequantize_int4(packed, scale, width):
    nibbles = np.stack([packed & 15, packed >> 4], axis=-1).reshape(*packed.shape[:2], -1)
    values = (nibbles.astype(np.float32) - 8) * scale[:, :, None]
    return values.reshape(len(packed), -1)[:, :width]


@given(matrices)
def test_int8_is_within_half_a_step(rows):
    codes, scale = int8_per_channel(rows)
    error = np.abs(codes * scale[:, None] - rows)
    assert (error <= 0.501 * scale[:, None] + 1e-36).all()
    assert np.abs(codes.astype(int)).max() <= 127


@given(matrices)
def test_int4_is_within_half_a_step_but_at_the_short_end(rows):
    packed, scale = int4_blockwise(rows, 32)
    assert packed.shape == (len(rows), -(-rows.shape[1] // 32), 16)
    error = np.abs(dequantize_int4(packed, scale, rows.shape[1]) - rows)
    steps = np.repeat(np.abs(scale), 32, axis=1)[:, : rows.shape[1]]
    # Seven steps up, eight down: what lies at the far end opposite the extreme loses up to one.
    assert (error <= 1.001 * steps + 1e-36).all()


def test_int4_keeps_the_extreme_value_of_every_block():
    rows = np.random.default_rng(0).standard_normal((16, 256)).astype(np.float32)
    packed, scale = int4_blockwise(rows, 64)
    values = dequantize_int4(packed, scale, 256).reshape(16, 4, 64)
    blocks = rows.reshape(16, 4, 64)
    at = np.abs(blocks).argmax(2)[..., None]
    np.testing.assert_allclose(
        np.take_along_axis(values, at, 2), np.take_along_axis(blocks, at, 2), rtol=1e-6
    )


def test_rows_do_not_depend_on_each_other():
    rows = np.random.default_rng(0).standard_normal((8, 100)).astype(np.float32)
    for quantize in (int8_per_channel, lambda r: int4_blockwise(r, 32)):
        whole, parts = quantize(rows), [quantize(rows[i : i + 2]) for i in range(0, 8, 2)]
        for index in range(2):
            np.testing.assert_array_equal(whole[index], np.concatenate([p[index] for p in parts]))


@pytest.mark.parametrize("quantize", [int8_per_channel, lambda r: int4_blockwise(r, 32)])
def test_zero_rows_stay_zero(quantize):
    codes, scale = quantize(np.zeros((2, 64), np.float32))
    assert np.isfinite(scale).all()
    assert set(np.unique(codes)) <= {0, 0x88}


def test_nvfp4_maps_a_blocks_largest_to_six_of_its_scale_and_packs_the_earlier_low():
    rows = np.zeros((2, 32), np.float32)
    rows[0, :4] = [6, -3, 0.5, 2.4]
    rows[1, 16:18] = [448 * 6, -448]
    scale = nvfp4_scale(np.abs(rows).max())
    assert scale == 1
    packed, scales = nvfp4(rows, scale)
    np.testing.assert_array_equal(scales.astype(np.float32), [[1, 1], [1, 448]])
    assert packed.shape == (2, 16)
    assert packed[0, :2].tolist() == [0xD7, 0x41]  # 6 | -3, 0.5 | 2.4 -> 2
    assert packed[1, 8] == 0xA7  # 6 | -1


@given(matrix=arrays(np.float32, (3, 32), elements=st.floats(-50, 50, width=32)))
def test_nvfp4_is_off_by_no_more_than_its_steps(matrix):
    scale = nvfp4_scale(np.abs(matrix).max())
    packed, scales = nvfp4(matrix, scale)
    nibbles = np.stack([packed & 15, packed >> 4], -1).reshape(matrix.shape)
    values = nibbles.view(ml_dtypes.float4_e2m1fn).astype(np.float32)
    unit = np.repeat(scales.astype(np.float32), 16, axis=1) * scale
    largest = np.abs(matrix.reshape(3, 2, 16)).max(axis=2).repeat(16, axis=1)
    # Half of the widest step (4 to 6) of a scale that e4m3 rounds by 1/16, or its least scale.
    assert (np.abs(values * unit - matrix) <= largest / 5 + 2.0**-9 * scale).all()
