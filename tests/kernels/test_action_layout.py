import numpy as np
import pytest

from autovla_rt.errors import InputError
from autovla_rt.export.quantize import int4_symmetric, int8_per_channel
from autovla_rt.kernels import action_layout
from autovla_rt.kernels.action_layout import dequantize, pack_int4, pack_mask, unpack_int4


def test_int4_survives_packing():
    codes = np.random.default_rng(0).integers(-8, 8, (5, 256)).astype(np.int8)
    packed = pack_int4(codes, 128)
    assert (packed.dtype, packed.shape) == (np.uint8, (5, 128))
    np.testing.assert_array_equal(unpack_int4(packed, 128), codes)


def test_a_byte_holds_inputs_half_a_block_apart():
    codes = np.zeros((1, 64), np.int8)
    codes[0, 33], codes[0, 49] = -8, 7
    assert pack_int4(codes, 32)[0, 17] == 0xF0


@pytest.mark.parametrize(
    ("codes", "block"),
    [
        (np.zeros((2, 100), np.int8), 64),
        (np.zeros((2, 9), np.int8), 9),
        (np.full((2, 64), 8, np.int8), 64),
        (np.full((2, 64), -9, np.int8), 64),
    ],
    ids=["part of a block", "odd block", "above 7", "below -8"],
)
def test_other_codes_are_refused(codes, block):
    with pytest.raises(InputError, match=r"expected -8..7 in whole blocks"):
        pack_int4(codes, block)


@pytest.mark.parametrize("quantize", [int8_per_channel, lambda rows: int4_symmetric(rows, 32)])
def test_dequantized_weights_are_within_half_a_step(quantize):
    rows = np.random.default_rng(0).standard_normal((6, 64)).astype(np.float32)
    codes, scales = quantize(rows)
    steps = np.repeat(scales.reshape(6, -1), 64 // scales.reshape(6, -1).shape[1], axis=1)
    values = dequantize(codes, scales)
    assert values.dtype == np.float32
    assert (np.abs(values - rows) <= 0.5001 * steps).all()


def test_mask_bit_of_an_action():
    allowed = np.zeros((2, 40), bool)
    allowed[0, [0, 31]] = allowed[1, 33] = True
    words = pack_mask(allowed)
    assert words.dtype == np.int32
    assert words.view(np.uint32).tolist() == [[0x80000001, 0], [0, 2]]


def test_the_last_program_may_be_part_full():
    assert action_layout.programs(2048) == 128
    assert action_layout.programs(17) == 2
    assert action_layout.scratch_shape(17, 8) == (16, 16)
