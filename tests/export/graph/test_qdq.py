"""Codes and scales of Q/DQ formats."""

import ml_dtypes
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from autovla_rt.export.graph.dialect import Formats
from autovla_rt.export.graph.qdq import FP8, INT4, INT8, QDQ, STATIC, QdqRounding, width_multiple

matrices = arrays(
    np.float32,
    st.tuples(st.integers(1, 5), st.sampled_from([2, 6, 64])),
    elements=st.floats(-50, 50, width=32),
)
LARGEST = {INT8: 127, INT4: 7, FP8: 448}


@pytest.mark.parametrize("floats", ["float32", "float16"])
@pytest.mark.parametrize("codes", LARGEST, ids=lambda of: of.element)
@given(rows=matrices)
@example(rows=np.full((1, 2), 9.5143e-39, np.float32))
def test_scales_are_positive_fit_the_type_and_clip_nothing(codes, floats, rows):
    scale = codes.scale(rows, floats)
    assert (scale > 0).all()
    np.testing.assert_array_equal(scale, scale.astype(floats).astype(np.float32))
    units = rows / scale[:, None]
    assert (units <= LARGEST[codes] * (1 + 1e-6)).all()
    assert (units >= codes.span[0] * (1 + 1e-6)).all()
    error = np.abs(codes.codes(rows, scale[:, None]) - units)
    # e4m3 has 4 significant bits: half a unit of the last is 1/16 at most.
    limit = np.maximum(np.abs(units) / 16, 2.0**-10) if codes is FP8 else 0.5
    assert (error <= limit + 1e-4).all()


def test_a_scale_is_no_coarser_than_the_largest_value_asks_for():
    rows = np.array([[-3.0, 7.0], [-8.0, 1.0], [0.0, 0.0]], np.float32)
    np.testing.assert_allclose(INT4.scale(rows, "float32"), [1, 8 / 7, 1], rtol=1e-6)
    np.testing.assert_array_equal(INT8.scale(rows * 127, "float32"), [7, 8, 1])
    np.testing.assert_array_equal(FP8.scale(rows * 448, "float32"), [7, 8, 1])


def test_a_scale_below_float16s_normal_numbers_is_rounded_up():
    rows = np.full((1, 2), 127 * 1.01e-7, np.float32)
    assert INT8.scale(rows, "float16")[0] == np.float32(2.0**-23)
    assert INT8.codes(rows, INT8.scale(rows, "float16")[:, None]).max() == 108


def test_values_beyond_the_calibrated_ones_saturate():
    scale = np.float32(0.5)
    values = np.array([[-1e4, 1e4, -64.0, 63.5]], np.float32)
    np.testing.assert_array_equal(INT8.codes(values, scale), [[-128, 127, -128, 127]])
    np.testing.assert_array_equal(FP8.codes(values, scale)[0, :2], [-448, 448])


def test_the_earlier_of_two_nibbles_is_the_low_one():
    packed = INT4.bytes(np.array([[1, -8, -1, 7]], np.float32))
    np.testing.assert_array_equal(packed, np.array([[0x81, 0x7F]], np.uint8))


def test_fp8_codes_are_those_of_ml_dtypes():
    values = np.linspace(-448, 448, 4001, dtype=np.float32)[None]
    codes = FP8.codes(values, np.float32(1))
    np.testing.assert_array_equal(codes, values.astype(ml_dtypes.float8_e4m3fn).astype(np.float32))
    stored = FP8.bytes(codes).view(ml_dtypes.float8_e4m3fn)
    np.testing.assert_array_equal(stored.astype(np.float32), codes)


class Ranges:
    def largest_input(self, module):
        return np.array([1.0, 6.35], np.float32)


def test_a_reference_rounds_by_channel_by_block_or_by_the_calibrations_range():
    rows = np.array([[1, 0.3, 10, 3], [0.01, 0.02, 0, 0]], np.float32)
    rounded = {
        name: QdqRounding(Formats.uniform(name, 2)).weights(("m",), rows) for name in ("fp32", *QDQ)
    }
    np.testing.assert_array_equal(rounded["fp32"], rows)
    step = 10 / 127
    np.testing.assert_allclose(rounded["int8"][0], np.rint(rows[0] / step) * step, rtol=1e-6)
    np.testing.assert_allclose(rounded["int4"][0], [1, 2 / 7, 10, 20 / 7], rtol=1e-6)
    assert rounded["int4"][1, 2:].tolist() == [0, 0]
    inputs = QdqRounding(Formats(lambda _m: "int8", ranges=Ranges())).inputs(("m",), rows)
    np.testing.assert_allclose(inputs[0], [1, 0.3, 6.35, 3], rtol=1e-6)
    for name in set(QDQ) - set(STATIC):
        assert QdqRounding(Formats.uniform(name)).inputs(("m",), rows) is rows


def test_inputs_are_rounded_in_some_formats_alone():
    assert STATIC == ("int8", "fp8")


def test_products_of_codes_are_float32_in_a_float16_graph():
    formats = Formats.uniform("int8", 64)
    half = Formats(formats.of, floats="float16")
    floats = {name: (of.floats(half), of.floats(formats)) for name, of in QDQ.items()}
    wide, narrow = ("float32", "float32"), ("float16", "float32")
    assert floats == {"int8": wide, "fp8": wide, "int8_wo": narrow, "int4": narrow}


def test_only_blocks_ask_for_a_multiple():
    multiples = {name: width_multiple(Formats.uniform(name, 64), "m") for name in ("fp16", *QDQ)}
    assert multiples == {"fp16": 1, "int8": 1, "int8_wo": 1, "int4": 64, "fp8": 1}
