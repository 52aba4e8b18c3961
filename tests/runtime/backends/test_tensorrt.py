"""The TensorRT backend from frames to plan, over models of TensorRT and of the driver.

Both do work as late as they may (see lazy_cuda.py), with ONNX Runtime's numbers: so plans are equal
to those of the same graphs on the CPU only if every buffer, order, context, replayed graph and
kernel argument is right. What NVIDIA's own code computes is not tested here.
"""

import numpy as np
import pytest
from demo_engine import REPO, run
from lazy_cuda import LazyDriver
from lazy_tensorrt import compile_lazily, lazy_tensorrt

from autovla_rt.bundle import load_bundle
from autovla_rt.kernels.action_head import action_logits
from autovla_rt.runtime.backends import cuda_device, cuda_kernels, tensorrt
from autovla_rt.runtime.backends.device_engine import DeviceLanguage, DeviceVision
from autovla_rt.runtime.backends.onnx_executor import OnnxDevice
from autovla_rt.runtime.planner import Planner, open_engines
from autovla_rt.runtime.scene import read_scene
from autovla_rt.runtime.stream import Stream

MINIATURE = REPO / "calib_data" / "miniature"
SIZE = ("--frame-size", "392x224", "--kv-capacity", "512")


@pytest.fixture(scope="module", params=["10.16", "10.3"])
def bundle(demo, tmp_path_factory, request):
    """The demo for a GPU of SM 8.6, with a new or an old TensorRT."""
    folder = tmp_path_factory.mktemp("gpu") / "engine"
    words = ("--target", "rtx-sm86", "--precision", "fp16", "--tensorrt", request.param)
    done = run("build", *demo.build_options, *words, *SIZE, "--out", folder, cache=folder.parent)
    assert done.returncode == 0, done.stderr
    return load_bundle(folder)


@pytest.fixture(params=["own", "shared"])
def driver(bundle, request, monkeypatch):
    """A GPU with memory of its own, or one that shares the host's."""
    driver = LazyDriver(bundle.folder, shares_memory=request.param == "shared")
    for module in (cuda_device, cuda_kernels):
        monkeypatch.setattr(module, "open_driver", lambda: driver)
    return driver


@pytest.fixture
def trt(bundle, driver, monkeypatch):
    trt = lazy_tensorrt(driver)
    monkeypatch.setattr(tensorrt, "load_tensorrt", lambda: trt)
    compile_lazily(bundle, trt, monkeypatch)
    return trt


@pytest.fixture
def gpu(bundle, trt):
    return Planner(bundle, *open_engines(bundle, None))


class HalfHead(OnnxDevice):
    """The CPU with the action head of the GPU: float16."""

    def action_head(self, weight):
        half = weight.astype(np.float16).astype(np.float32)
        return lambda hidden: action_logits(hidden.astype(np.float16).astype(np.float32), half)


@pytest.fixture
def cpu(bundle):
    device = HalfHead(1)
    return Planner(bundle, DeviceVision(bundle, device), DeviceLanguage(bundle, device))


def requests(count):
    scenes = sorted((MINIATURE / "scenes").iterdir())[:count]
    return [read_scene(scene, MINIATURE / "sensors") for scene in scenes]


def told(plan):
    return plan.action_tokens, plan.reasoning, plan.p_slow, plan.forward_passes


@pytest.mark.parametrize("mode", ["fast", "slow"])
def test_plans_are_those_of_the_same_graphs_on_the_cpu(gpu, cpu, mode):
    for request in requests(3):
        found, expected = (
            planner.plan(request, mode=mode, thinking_token_budget=20) for planner in (gpu, cpu)
        )
        assert told(found) == told(expected)


def test_so_they_are_in_a_stream_which_knows_half_of_the_frames(gpu, cpu):
    streams = [Stream(planner) for planner in (gpu, cpu)]
    frames = [request.frames for request in requests(3)]
    (request, *_) = requests(1)
    for tick in range(4):
        moved = {
            name: [frames[(tick + place) // 2 % 3][name][(tick + place) % 4] for place in range(4)]
            for name in request.frames
        }
        asked = type(request)(moved, request.velocity, request.acceleration, request.instruction)
        found, expected = (stream.plan(asked, time=tick / 2) for stream in streams)
        assert told(found) == told(expected)
    assert streams[0].seen.features.hits == streams[1].seen.features.hits > 0


def test_one_camera_is_seen_while_the_one_before_is_read(gpu, driver):
    (request,) = requests(1)
    gpu.plan(request, mode="fast")
    driver.log.clear()
    gpu.plan(request, mode="fast")
    vision = next(stream for what, stream in driver.log if what == "resize_patchify")
    steps = [
        (what, stream == vision)
        for what, stream in driver.log
        if what in ("resize_patchify", "replay", "wait for an event")
    ]
    read, wait, seen = ("replay", False), ("wait for an event", True), ("replay", True)
    # All three cameras are on the queue before any is waited for; in the first plan passes ran as
    # they are, in this one they are captured and replayed.
    assert steps[:6] == [("resize_patchify", True), seen] * 3
    assert steps[6:11] == [wait, read, wait, read, wait]


def test_passes_that_come_again_are_replayed(gpu, driver, trt):
    (request,) = requests(1)
    for _ in range(3):
        driver.log.clear()
        gpu.plan(request, mode="fast")
    names = {what for what, _ in driver.log}
    assert "replay" in names
    assert names.isdisjoint(engine.name for engine in trt.engines)


def test_frames_of_another_size_take_the_place_of_the_last_ones(gpu, cpu, driver):
    (request,) = requests(1)
    large = {
        name: [np.repeat(np.repeat(open_array(frame), 2, axis=0), 2, axis=1) for frame in of]
        for name, of in request.frames.items()
    }
    other = type(request)(large, request.velocity, request.acceleration, request.instruction)
    sizes = []
    for asked in (request, other, request, other):
        found, expected = (planner.plan(asked, mode="fast") for planner in (gpu, cpu))
        assert told(found) == told(expected)
        sizes.append(driver.allocated)
    assert sizes[1] == sizes[3] > sizes[0] == sizes[2]


def test_patches_come_from_the_host_as_well(bundle, gpu, cpu):
    grid = bundle.manifest.cameras[0].grid[1:]
    width = bundle.manifest.geometry.vision.patch_width
    patches = np.random.default_rng(0).standard_normal((5, grid[0] * grid[1], width), np.float32)
    engines = (planner._cameras._pairs._engine for planner in (gpu, cpu))
    found, expected = (engine.encode(patches, grid) for engine in engines)
    np.testing.assert_array_equal(found, expected)


def test_nothing_grows_with_the_number_of_plans(gpu, driver, trt):
    sizes = []
    for request in requests(2) * 3:
        gpu.plan(request, mode="fast")
        sizes.append((driver.allocated, [engine.contexts for engine in trt.engines]))
    assert sizes[-1] == sizes[-2] == sizes[-3]


def open_array(frame):
    from PIL import Image

    return np.asarray(Image.open(frame).convert("RGB"))
