"""Compiled kernels on a device, launched through its driver, against their references.

python -m autovla_rt.kernels.aot build/cubins                # anywhere, with Triton
pytest --confcutdir tests/gpu tests/gpu                      # on the device, without it
"""

import os
from pathlib import Path

import numpy as np
import pytest
from kernel_cases import EDGES, check_head, head_case, resize_case

from autovla_rt.errors import DependencyError, DeviceError

pytestmark = pytest.mark.gpu

CUBINS = Path(
    os.environ.get("AUTOVLA_CUBINS", Path(__file__).resolve().parents[2] / "build" / "cubins")
)
FORMATS = ("fp16", "int8", "int4")


@pytest.fixture(scope="module")
def device():
    from gpu_device import Device

    try:
        opened = Device()
    except DependencyError as error:
        pytest.skip(str(error))
    with opened:
        yield opened


@pytest.fixture(scope="module")
def kernels(device):
    from autovla_rt.runtime.backends.cuda_kernels import CudaKernels

    folder = CUBINS / f"sm_{device.sm}"
    if not folder.is_dir():
        pytest.skip(f"no kernels at {folder}: python -m autovla_rt.kernels.aot {CUBINS}")
    return CudaKernels(folder)


@pytest.fixture
def run(device, kernels):
    def run(case, times=1):
        addresses = {name: device.upload(array) for name, array in case.arrays.items()}
        for _ in range(times):
            kernels.launch(case.name, case.programs, addresses | case.numbers, device.stream)
        return {name: device.download(addresses[name], case.arrays[name]) for name in case.outputs}

    return run


@pytest.mark.parametrize(
    ("size", "resized", "frames"),
    [
        ((1080, 1920), (224, 420), 12),
        ((224, 420), (224, 420), 4),
        ((375, 1242), (168, 588), 4),
        ((12, 17), (28, 56), 2),
        ((2160, 3840), (224, 420), 2),
    ],
    ids=["twelve frames of 1080p", "same size", "1242x375", "enlarged", "2160p"],
)
def test_patches_equal_the_reference_bit_for_bit(run, size, resized, frames):
    case = resize_case(size, resized, frames)
    np.testing.assert_array_equal(run(case)["patches"], case.expected["patches"])


def test_levels_beyond_black_and_white_are_cut(run):
    case = resize_case((40, 70), (28, 56), contrast="extremes")
    np.testing.assert_array_equal(run(case)["patches"], case.expected["patches"])


@pytest.mark.parametrize("weights", FORMATS)
@pytest.mark.parametrize("top", [1, 8])
@pytest.mark.parametrize(("rows", "actions"), [(1, 2048), (10, 2048), (16, 101)])
def test_action_head_equals_the_reference(run, weights, top, rows, actions):
    case = head_case(weights, rows, actions, top)
    check_head(case, run(case), top)


@pytest.mark.parametrize("change", EDGES)
@pytest.mark.parametrize("weights", FORMATS)
def test_action_head_of_edge_cases(run, weights, change):
    case = head_case(weights, 2, 100, 8, change=change)
    check_head(case, run(case), 8)


@pytest.mark.parametrize("top", [1, 8])
def test_a_thousand_launches_in_a_row_choose_alike(run, top):
    # Programs come last in another order each time, and all must see what the others wrote.
    case = head_case("int4", 10, 2048, top)
    check_head(case, run(case, times=1000), top)


def test_a_refused_launch_says_so(kernels, device):
    case = head_case("fp16", 1, 16)
    addresses = {name: device.upload(array) for name, array in case.arrays.items()}
    with pytest.raises(DeviceError, match="could not launch action_head_fp16_top1"):
        kernels.launch(case.name, (0, 1, 1), addresses | case.numbers, device.stream)
