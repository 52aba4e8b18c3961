"""A GPU's memory, stream and graphs through the driver: run on a machine that has one."""

import os
from pathlib import Path

import numpy as np
import pytest

from autovla_rt.errors import DependencyError, DeviceError
from autovla_rt.kernels.action_head import action_logits
from autovla_rt.runtime.backends.cuda_device import CudaDevice
from autovla_rt.runtime.backends.cuda_kernels import CudaKernels
from autovla_rt.runtime.backends.gpu_action_head import GpuActionHead

pytestmark = pytest.mark.gpu

CUBINS = Path(
    os.environ.get("AUTOVLA_CUBINS", Path(__file__).resolve().parents[2] / "build" / "cubins")
)


@pytest.fixture(scope="module")
def device():
    try:
        return CudaDevice()
    except DependencyError as error:
        pytest.skip(str(error))


def copy(device, source, target, size):
    """Work of the device's own."""
    device.is_busy = True
    device.put("cuMemcpyDtoDAsync", target, source, size)


@pytest.mark.parametrize("dtype", ["float32", "float16", "int64"])
def test_what_is_written_is_read_and_the_rest_is_zero(device, dtype):
    buffer = device.allocate((3, 5), dtype)
    array = np.arange(1, 8).astype(dtype)
    buffer.write(array)
    read = buffer.read((3, 5))
    np.testing.assert_array_equal(read.reshape(-1)[:7], array)
    assert not read.reshape(-1)[7:].any()


def test_kept_memory_holds_its_array(device):
    array = np.random.default_rng(0).standard_normal((1000, 333)).astype(np.float32)
    kept, buffer = device.keep(array), device.allocate(array.shape, "float32")
    copy(device, kept.address, buffer.address, array.nbytes)
    np.testing.assert_array_equal(buffer.read(array.shape), array)


def test_writing_waits_for_work_that_reads_what_was_there(device):
    size = 64 << 20
    given, found = (device.allocate((size // 4,), "float32") for _ in range(2))
    for step in range(20):
        given.write(np.full(size // 4, step, np.float32))
        copy(device, given.address, found.address, size)
        given.write(np.full(size // 4, -1, np.float32))
        assert (found.read((size // 4,)) == step).all()


def test_a_captured_graph_runs_only_when_it_is_replayed(device):
    given, found = (device.allocate((1024,), "int64") for _ in range(2))
    graph = device.capture(lambda: copy(device, given.address, found.address, 8192))
    given.write(np.arange(1024))
    assert not found.read((1024,)).any()
    for start in (0, 7, 50):  # reads what lies there at the time
        given.write(np.arange(start, start + 1024))
        device.is_busy = True
        device.replay(graph)
        np.testing.assert_array_equal(found.read((1024,)), np.arange(start, start + 1024))
    device.forget(graph)


def test_work_that_fails_in_a_capture_leaves_the_stream_usable(device):
    with pytest.raises(DeviceError):
        device.capture(lambda: device.put("cuMemcpyDtoDAsync", 1, 2, 4))
    buffer = device.allocate((4,), "float32")
    buffer.write(np.ones(4, np.float32))
    assert buffer.read((4,)).all()


def test_what_the_driver_refuses_is_told_with_its_own_name(device):
    with pytest.raises(DeviceError, match="CUDA_ERROR"):
        device.keep(np.zeros(0, np.float32))


def test_the_action_head_of_a_bundle_is_the_references(device):
    folder = CUBINS / f"sm_{device.sm}"
    if not folder.is_dir():
        pytest.skip(f"no kernels at {folder}: python -m autovla_rt.kernels.aot {CUBINS}")
    rng = np.random.default_rng(0)
    weight = (0.02 * rng.standard_normal((2048, 2048))).astype(np.float16).astype(np.float32)
    head = GpuActionHead(device, CudaKernels(folder), weight)
    for rows in (1, 12, 16, 40):
        hidden = rng.standard_normal((rows, 2048)).astype(np.float16).astype(np.float32)
        np.testing.assert_allclose(head(hidden), action_logits(hidden, weight), atol=1e-3)
