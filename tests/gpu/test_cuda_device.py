"""A GPU's memory, stream and graphs through the driver: run on a machine that has one."""

import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from autovla_rt.config import Camera, Preprocessing
from autovla_rt.errors import DependencyError, DeviceError
from autovla_rt.kernels.action_head import action_logits
from autovla_rt.kernels.patchify import patchify
from autovla_rt.kernels.resample import resample
from autovla_rt.runtime.backends.cuda_device import CudaDevice
from autovla_rt.runtime.backends.cuda_kernels import CudaKernels
from autovla_rt.runtime.backends.gpu_action_head import GpuActionHead
from autovla_rt.runtime.backends.gpu_frame_patches import GpuFramePatches

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
    device.put("cuMemcpyDtoDAsync", target.address, source.address, size)
    device.uses(source, target)


@pytest.mark.parametrize("dtype", ["float32", "float16", "int64"])
def test_what_is_written_is_read_and_the_rest_is_zero(device, dtype):
    buffer = device.allocate((3, 5), dtype)
    array = np.arange(1, 8).astype(dtype)
    buffer.write(array)
    read = buffer.read((3, 5))
    np.testing.assert_array_equal(read.reshape(-1)[:7], array)
    assert not read.reshape(-1)[7:].any()


def test_the_driver_says_which_cuda_it_runs(device):
    assert tuple(map(int, device.cuda.split("."))) >= (12, 0)


def test_kept_memory_holds_its_array(device):
    array = np.random.default_rng(0).standard_normal((1000, 333)).astype(np.float32)
    kept, buffer = device.keep(array), device.allocate(array.shape, "float32")
    copy(device, kept, buffer, array.nbytes)
    np.testing.assert_array_equal(buffer.read(array.shape), array)


def test_writing_waits_for_work_that_reads_what_was_there(device):
    size = 64 << 20
    given, found = (device.allocate((size // 4,), "float32") for _ in range(2))
    for step in range(20):
        given.write(np.full(size // 4, step, np.float32))
        copy(device, given, found, size)
        given.write(np.full(size // 4, -1, np.float32))
        assert (found.read((size // 4,)) == step).all()


def test_a_captured_graph_runs_only_when_it_is_replayed(device):
    given, found = (device.allocate((1024,), "int64") for _ in range(2))
    graph = device.capture(lambda: copy(device, given, found, 8192))
    given.write(np.arange(1024))
    assert not found.read((1024,)).any()
    for start in (0, 7, 50):  # reads what lies there at the time
        given.write(np.arange(start, start + 1024))
        device.replay(graph)
        device.uses(given, found)
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


@pytest.fixture(scope="module")
def kernels(device):
    folder = CUBINS / f"sm_{device.sm}"
    if not folder.is_dir():
        pytest.skip(f"no kernels at {folder}: python -m autovla_rt.kernels.aot {CUBINS}")
    return CudaKernels(folder)


def test_what_was_fetched_is_there_while_later_work_goes_on(device):
    size = 64 << 20
    given, found, later = (device.allocate((size // 4,), "float32") for _ in range(3))
    for step in range(10):
        given.write(np.full(size // 4, step, np.float32))
        copy(device, given, found, size)
        fetched = found.fetch((size // 4,))
        for _ in range(5):
            copy(device, given, later, size)
        assert (fetched() == step).all()
        given.write(np.full(size // 4, -1, np.float32))
        assert (later.read((size // 4,)) == step).all()


def test_a_stream_beside_works_by_itself(device):
    beside = device.beside()
    assert beside.stream != device.stream
    buffers = [of.allocate((1024,), "int64") for of in (device, beside)]
    for buffer in buffers:
        buffer.write(np.arange(1024))
    for buffer in buffers[::-1]:
        np.testing.assert_array_equal(buffer.read((1024,)), np.arange(1024))


def test_frames_become_the_references_patches(device, kernels):
    rng = np.random.default_rng(0)
    vision = SimpleNamespace(
        patch_size=14, spatial_merge_size=2, temporal_patch_size=2, patch_width=1176
    )
    manifest = SimpleNamespace(
        geometry=SimpleNamespace(vision=vision), preprocessing=Preprocessing()
    )
    camera = Camera(name="front", grid=(2, 16, 30))
    make = GpuFramePatches(device, kernels, camera, manifest)
    patches = [device.allocate((2, 480, 1176), "float16") for _ in range(2)]
    for size in ((1080, 1920), (900, 1601), (224, 420)):
        given = [list(rng.integers(0, 256, (4, *size, 3), dtype=np.uint8)) for _ in patches]
        for frames, buffer in zip(given, patches, strict=True):  # neither is waited for
            make(frames, buffer)
        for frames, buffer in zip(given, patches, strict=True):
            expected = patchify(resample(np.stack(frames), (224, 420)), Preprocessing(), vision)
            found = buffer.read((2, 480, 1176))
            np.testing.assert_array_equal(found, expected.astype(np.float16))


def test_the_action_head_of_a_bundle_is_the_references(device, kernels):
    rng = np.random.default_rng(0)
    weight = (0.02 * rng.standard_normal((2048, 2048))).astype(np.float16).astype(np.float32)
    head = GpuActionHead(device, kernels, weight)
    for rows in (1, 12, 16, 40):
        hidden = rng.standard_normal((rows, 2048)).astype(np.float16).astype(np.float32)
        np.testing.assert_allclose(head(hidden), action_logits(hidden, weight), atol=1e-3)
