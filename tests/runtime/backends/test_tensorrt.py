"""The TensorRT backend from frames to plan, over models of TensorRT and of the driver.

Both do work as late as they may (see lazy_cuda.py), with ONNX Runtime's numbers: so plans are equal
to those of the same graphs on the CPU only if every buffer, order, context, replayed graph and
kernel argument is right. What NVIDIA's own code computes is not tested here.
"""

import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from types import ModuleType

import numpy as np
import pytest
from demo_engine import REPO, run
from lazy_cuda import LazyDriver
from lazy_tensorrt import compile_lazily, lazy_tensorrt
from PIL import Image

from autovla_rt.bundle import Bundle, load_bundle
from autovla_rt.kernels.action_head import action_logits
from autovla_rt.runtime.backends import cuda_device, cuda_kernels, tensorrt
from autovla_rt.runtime.backends.device_engine import DeviceLanguage, DeviceVision
from autovla_rt.runtime.backends.onnx_executor import OnnxDevice
from autovla_rt.runtime.engines import open_engines
from autovla_rt.runtime.planner import Planner
from autovla_rt.runtime.scene import read_scene
from autovla_rt.runtime.stream import Stream

MINIATURE = REPO / "calib_data" / "miniature"
SIZE = ("--frame-size", "392x224", "--kv-capacity", "512")


class HalfHead(OnnxDevice):
    """The CPU with the action head of the GPU: float16."""

    def action_head(self, weight):
        half = weight.astype(np.float16).astype(np.float32)
        return lambda hidden: action_logits(hidden.astype(np.float16).astype(np.float32), half)


@dataclass
class Loaded:
    """An engine on the late GPU, its TensorRT and driver, and the same graphs on the CPU."""

    bundle: Bundle
    driver: LazyDriver
    trt: ModuleType
    gpu: Planner
    cpu: Planner


KINDS = [("10.16", "own memory"), ("10.16", "shared memory"), ("10.3", "own memory")]


@pytest.fixture(scope="module", params=KINDS, ids=" ".join)
def loaded(demo, tmp_path_factory, request):
    """The demo for a GPU of SM 8.6: a new or an old TensorRT, a card or a Tegra."""
    version, memory = request.param
    folder = tmp_path_factory.mktemp("gpu") / "engine"
    words = ("--target", "rtx-sm86", "--precision", "fp16", "--tensorrt", version)
    done = run("build", *demo.build_options, *words, *SIZE, "--out", folder, cache=folder.parent)
    assert done.returncode == 0, done.stderr
    bundle = load_bundle(folder)
    driver = LazyDriver(bundle.folder, shares_memory=memory == "shared memory")
    trt = lazy_tensorrt(driver)
    with pytest.MonkeyPatch.context() as patched:
        for module in (cuda_device, cuda_kernels):
            patched.setattr(module, "open_driver", lambda: driver)
        patched.setattr(tensorrt, "load_tensorrt", lambda: trt)
        compile_lazily(bundle, trt, patched)
        gpu = Planner(bundle, *open_engines(bundle, None))
    device = HalfHead(1)
    cpu = Planner(bundle, DeviceVision(bundle, device), DeviceLanguage(bundle, device))
    return Loaded(bundle, driver, trt, gpu, cpu)


@pytest.fixture
def gpu(loaded):
    return loaded.gpu


@pytest.fixture
def cpu(loaded):
    return loaded.cpu


@pytest.fixture
def driver(loaded):
    loaded.driver.log.clear()
    return loaded.driver


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
    for _ in range(2):  # passes run as they are, then they are captured
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
    # All three cameras are on the queue before any is waited for.
    assert steps[:6] == [("resize_patchify", True), seen] * 3
    assert steps[6:11] == [wait, read, wait, read, wait]


def test_it_loads_nvtx_so_that_stages_are_ranges(loaded):
    assert "nvtx" in sys.modules


def test_passes_that_come_again_are_replayed(loaded, gpu, driver):
    (request,) = requests(1)
    for _ in range(3):
        driver.log.clear()
        gpu.plan(request, mode="fast")
    names = {what for what, _ in driver.log}
    assert "replay" in names
    assert names.isdisjoint(engine.name for engine in loaded.trt.engines)


def test_another_thread_than_the_one_that_loaded_it_may_plan(gpu, cpu):
    (request,) = requests(1)
    with ThreadPoolExecutor(1) as other:
        found = other.submit(gpu.plan, request, mode="fast").result()
    assert told(found) == told(cpu.plan(request, mode="fast"))


def test_frames_of_another_size_take_the_place_of_the_last_ones(gpu, cpu, driver):
    (request,) = requests(1)
    large = {
        name: [
            np.repeat(np.repeat(np.asarray(Image.open(frame)), 2, axis=0), 2, axis=1)
            for frame in of
        ]
        for name, of in request.frames.items()
    }
    other = type(request)(large, request.velocity, request.acceleration, request.instruction)
    sizes = []
    for asked in (request, other, request, other):
        found, expected = (planner.plan(asked, mode="fast") for planner in (gpu, cpu))
        assert told(found) == told(expected)
        sizes.append(driver.allocated)
    assert sizes[1] == sizes[3] > sizes[2] == sizes[0]


def test_patches_come_from_the_host_as_well(loaded, gpu, cpu):
    manifest = loaded.bundle.manifest
    grid = manifest.cameras[0].grid[1:]
    width = manifest.geometry.vision.patch_width
    patches = np.random.default_rng(0).standard_normal((5, grid[0] * grid[1], width), np.float32)
    engines = (planner._cameras._pairs._engine for planner in (gpu, cpu))
    found, expected = (engine.encode(patches, grid) for engine in engines)
    np.testing.assert_array_equal(found, expected)


def test_nothing_grows_with_the_number_of_plans(loaded, gpu, driver):
    sizes = []
    for request in requests(2) * 3:
        gpu.plan(request, mode="fast")
        sizes.append((driver.allocated, [engine.contexts for engine in loaded.trt.engines]))
    assert sizes[-1] == sizes[-2] == sizes[-3]
