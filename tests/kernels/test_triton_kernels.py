"""The kernels' source in Triton's interpreter; on a device: tests/gpu."""

import numpy as np
import pytest
from kernel_cases import EDGES, check_head, head_case, resize_case
from triton_interpreter import triton_interpreter

FORMATS = ("fp16", "int8", "int4")


@pytest.fixture(scope="module")
def interpret():
    pytest.importorskip("triton")
    with triton_interpreter() as run:
        yield run


@pytest.mark.parametrize(
    ("size", "resized", "frames"),
    [
        ((28, 28), (28, 28), 2),
        ((12, 17), (28, 56), 2),
        ((61, 131), (56, 84), 4),
        ((540, 64), (28, 28), 2),
        ((30, 960), (28, 56), 2),
    ],
    ids=["same size", "enlarged", "four frames", "shrunk in rows", "shrunk in columns"],
)
def test_patches_equal_the_reference_bit_for_bit(interpret, size, resized, frames):
    case = resize_case(size, resized, frames)
    np.testing.assert_array_equal(interpret(case)["patches"], case.expected["patches"])


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_levels_beyond_black_and_white_are_cut(interpret, dtype):
    case = resize_case((40, 70), (28, 56), contrast="extremes", dtype=dtype)
    np.testing.assert_array_equal(interpret(case)["patches"], case.expected["patches"])


@pytest.mark.parametrize("weights", FORMATS)
@pytest.mark.parametrize(("rows", "actions", "top"), [(1, 64, 1), (3, 17, 8), (16, 101, 8)])
def test_action_head_equals_the_reference(interpret, weights, rows, actions, top):
    case = head_case(weights, rows, actions, top, width=256)
    check_head(case, interpret(case, hidden_size=256), top)


@pytest.mark.parametrize("change", EDGES)
@pytest.mark.parametrize("weights", FORMATS)
def test_action_head_of_edge_cases(interpret, weights, change):
    case = head_case(weights, 2, 40, 8, width=128, change=change)
    check_head(case, interpret(case, hidden_size=128), 8)


def test_action_head_of_another_block(interpret):
    case = head_case("int4", 2, 32, width=192, block=64)
    check_head(case, interpret(case, hidden_size=192, block=64), 1)
