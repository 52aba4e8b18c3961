"""Memory, streams and graphs, over a model of the driver that does nothing before it must.

The same on a real device: tests/gpu/test_cuda_device.py.
"""

from types import SimpleNamespace

import numpy as np
import pytest
from lazy_cuda import SM, LazyDriver

from autovla_rt.config import Camera, Preprocessing
from autovla_rt.kernels.aot import compile_kernels
from autovla_rt.kernels.patchify import patchify
from autovla_rt.kernels.resample import resample
from autovla_rt.kernels.variants import variants
from autovla_rt.runtime.backends import cuda_device, cuda_kernels
from autovla_rt.runtime.backends.cuda_device import CudaDevice
from autovla_rt.runtime.backends.cuda_kernels import CudaKernels
from autovla_rt.runtime.backends.gpu_frame_patches import GpuFramePatches

VISION = SimpleNamespace(
    patch_size=14, spatial_merge_size=2, temporal_patch_size=2, patch_width=1176
)
MANIFEST = SimpleNamespace(geometry=SimpleNamespace(vision=VISION), preprocessing=Preprocessing())
CAMERA = Camera(name="front", grid=(2, 4, 6))


@pytest.fixture(scope="module")
def kernels(tmp_path_factory):
    folder = tmp_path_factory.mktemp("kernels")
    compile_kernels(folder, SM, [of for of in variants() if of.name == "resize_patchify"])
    return folder


@pytest.fixture(params=["own memory", "shared memory"])
def driver(kernels, request, monkeypatch):
    driver = LazyDriver(kernels, shares_memory=request.param == "shared memory")
    for module in (cuda_device, cuda_kernels):
        monkeypatch.setattr(module, "open_driver", lambda: driver)
    return driver


@pytest.fixture
def device(driver):
    return CudaDevice()


def copy(device, source, target, size):
    """Work of the device's own."""
    device.put("cuMemcpyDtoDAsync", target.address, source.address, size)
    device.uses(source, target)


def test_what_is_written_is_read_and_the_rest_is_zero(device):
    buffer = device.allocate((3, 5), "int64")
    buffer.write(np.arange(1, 8))
    read = buffer.read((3, 5)).reshape(-1)
    assert read.tolist() == [*range(1, 8), *[0] * 8]


def test_it_is_converted_to_the_buffers_type(device):
    buffer = device.allocate((2,), "float16")
    buffer.write(np.array([1.0001, 2049], np.float32))
    assert buffer.read((2,)).tolist() == [1, 2048]


def test_writing_waits_for_work_that_reads_what_was_there(device):
    given, found = (device.allocate((8,), "int64") for _ in range(2))
    for step in range(3):
        given.write(np.full(8, step))
        copy(device, given, found, 64)
        given.write(np.full(8, -1))
        assert found.read((8,)).tolist() == [step] * 8


def test_what_is_written_last_is_there(device):
    buffer = device.allocate((4,), "int64")
    for step in range(3):
        buffer.write(np.full(4, step))
        buffer.write(np.full(4, step + 10))
        buffer.fetch((4,))  # and is never asked for
        buffer.write(np.full(4, step + 20))
    assert buffer.read((4,)).tolist() == [22] * 4


def test_a_buffer_that_nothing_uses_is_written_without_waiting(device, driver):
    first, second, found = (device.allocate((8,), "int64") for _ in range(3))
    device.wait()
    first.write(np.ones(8))
    copy(device, first, found, 64)
    driver.log.clear()
    second.write(np.ones(8))
    assert "wait" not in {what for what, _ in driver.log}


def test_what_was_fetched_is_waited_for_alone(device, driver):
    given, found, later = (device.allocate((8,), "int64") for _ in range(3))
    given.write(np.arange(8))
    copy(device, given, found, 64)
    fetched = found.fetch((8,))
    copy(device, given, later, 64)
    driver.log.clear()
    assert fetched().tolist() == list(range(8))
    assert [what for what, _ in driver.log] == ["wait for an event"]
    given.write(np.zeros(8))  # has to wait for the second copy
    assert later.read((8,)).tolist() == list(range(8))


def test_work_beside_is_another_streams(device, driver):
    beside = device.beside()
    assert beside.stream != device.stream
    buffers = [of.allocate((8,), "int64") for of in (device, beside)]
    for buffer in buffers:
        buffer.write(np.arange(8))
    driver.log.clear()
    assert buffers[1].read((8,)).tolist() == list(range(8))
    assert {stream for _, stream in driver.log} == {beside.stream}


def test_a_captured_graph_runs_only_when_it_is_replayed(device):
    given, found = (device.allocate((8,), "int64") for _ in range(2))
    graph = device.capture(lambda: copy(device, given, found, 64))
    given.write(np.arange(8))
    assert not found.read((8,)).any()
    device.replay(graph)
    assert found.read((8,)).tolist() == list(range(8))


def test_memory_is_given_back(device, driver):
    before = driver.allocated
    device.release(device.allocate((100,), "float32"), device.keep(np.ones(100)))
    assert driver.allocated == before


def frames_of(rng, size):
    return list(rng.integers(0, 256, (4, *size, 3), dtype=np.uint8))


def test_frames_become_the_references_patches_without_waiting_for_each_other(device, kernels):
    rng = np.random.default_rng(0)
    make = GpuFramePatches(device, CudaKernels(kernels), CAMERA, MANIFEST)
    patches = [device.allocate((2, 24, 1176), "float16") for _ in range(2)]
    for size in ((108, 192), (56, 84), (61, 97)):
        given = [frames_of(rng, size) for _ in patches]
        for frames, buffer in zip(given, patches, strict=True):
            make(frames, buffer)
        for frames, buffer in zip(given, patches, strict=True):
            expected = patchify(resample(np.stack(frames), (56, 84)), Preprocessing(), VISION)
            found = buffer.read((2, 24, 1176))
            np.testing.assert_array_equal(found, expected.astype(np.float16))


def test_fewer_frames_than_there_is_room_for(device, kernels):
    rng = np.random.default_rng(1)
    make = GpuFramePatches(device, CudaKernels(kernels), CAMERA, MANIFEST)
    buffer = device.allocate((2, 24, 1176), "float16")
    frames = frames_of(rng, (70, 90))[:2]
    make(frames, buffer)
    expected = patchify(resample(np.stack(frames), (56, 84)), Preprocessing(), VISION)
    np.testing.assert_array_equal(buffer.read((1, 24, 1176)), expected.astype(np.float16))
