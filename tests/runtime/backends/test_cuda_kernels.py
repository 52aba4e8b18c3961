"""What needs no device; launches are tested in tests/gpu."""

import numpy as np
import pytest

from autovla_rt.cubin import Argument, Cubin
from autovla_rt.errors import DependencyError, DeviceError
from autovla_rt.runtime.backends.cuda_kernels import CudaKernels, open_driver, pack_arguments

CUBIN = Cubin(
    name="double",
    entry="double",
    sha256="",
    warps=1,
    shared_bytes=0,
    arguments=(
        Argument(name="x", kind="pointer", type="float16", multiple=16),
        Argument(name="count", kind="int32", type="int32", multiple=1),
        Argument(name="pitch", kind="int32", type="int32", multiple=16),
    ),
    hidden_pointers=2,
    constants={},
    registers=16,
    stack_bytes=0,
    spills=0,
    instructions={},
)
GIVEN = {"pitch": 32, "count": 3, "x": 1 << 40}


def test_arguments_are_put_in_order_and_null_pointers_behind_them():
    slots = pack_arguments(CUBIN, GIVEN)
    assert slots.dtype == np.uint64
    assert slots.tolist() == [1 << 40, 3, 32, 0, 0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": 8}, r"x \(pointer\): expected a multiple of 16"),
        ({"pitch": 33}, r"pitch \(int32\): expected a multiple of 16 .* got 33"),
        ({"count": 1 << 31}, "count .* from 0 to 2147483647"),
        ({"count": -1}, "got -1"),
        ({"y": 0}, "expected the arguments x, count, pitch, got pitch, count, x, y"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(change, message):
    with pytest.raises(DeviceError, match=message):
        pack_arguments(CUBIN, GIVEN | change)


def test_a_missing_argument_is_refused():
    with pytest.raises(DeviceError, match="expected the arguments x, count, pitch, got x"):
        pack_arguments(CUBIN, {"x": 0})


def test_without_a_device_the_message_says_what_is_missing(tmp_path):
    if has_device():
        pytest.skip("this machine has a device")
    with pytest.raises(DependencyError, match=r"NVIDIA's driver|cuInit|cuda-bindings"):
        CudaKernels(tmp_path)


def has_device():
    try:
        open_driver()
    except DependencyError:
        return False
    return True
