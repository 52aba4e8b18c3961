"""An engine on its own GPU against the same graphs in ONNX Runtime, on the CPU.

AUTOVLA_ENGINE names a bundle that was built for this GPU; make test-gpu ENGINE=... compiles it
first. float16 rounds otherwise on a GPU, so features and states are compared by their direction.
"""

import os
from pathlib import Path

import numpy as np
import pytest

from autovla_rt.cuda_driver import NoDriver, probe
from autovla_rt.errors import DependencyError
from autovla_rt.kernels.resize import video_grid

pytestmark = pytest.mark.gpu

COSINE = 0.9995
ENGINE = os.environ.get("AUTOVLA_ENGINE")


@pytest.fixture(scope="module")
def bundle():
    if isinstance(driver := probe(), NoDriver):
        pytest.skip(driver.reason)
    if not ENGINE:
        pytest.skip("AUTOVLA_ENGINE names no bundle: make test-gpu ENGINE=engines/mine")
    from autovla_rt.bundle import load_bundle
    from autovla_rt.runtime.backends.tensorrt import load_tensorrt

    try:
        load_tensorrt()
    except DependencyError as error:
        pytest.skip(str(error))
    return load_bundle(Path(ENGINE))


@pytest.fixture(scope="module")
def engines(bundle):
    from autovla_rt.runtime.backends.device_engine import DeviceLanguage, DeviceVision
    from autovla_rt.runtime.backends.onnx_executor import OnnxDevice
    from autovla_rt.runtime.engines import open_engines

    cpu = OnnxDevice()
    return {
        "gpu": open_engines(bundle, None),
        "cpu": (DeviceVision(bundle, cpu), DeviceLanguage(bundle, cpu)),
    }


def cosines(ours, theirs):
    products = (ours * theirs).sum(axis=-1)
    return products / (np.linalg.norm(ours, axis=-1) * np.linalg.norm(theirs, axis=-1))


def test_features(bundle, engines):
    width = bundle.manifest.geometry.vision.patch_width
    for camera in bundle.manifest.cameras:
        count, *grid = camera.grid
        rng = np.random.default_rng(0)
        patches = rng.standard_normal((count, grid[0] * grid[1], width)).astype(np.float32)
        found = {name: vision.encode(patches, tuple(grid)) for name, (vision, _) in engines.items()}
        assert cosines(found["gpu"], found["cpu"]).min() > COSINE


def test_features_of_frames_started_one_after_the_other(bundle, engines):
    rng = np.random.default_rng(1)
    cameras = bundle.manifest.cameras
    shapes = [(2 * camera.grid[0], 600, 1067, 3) for camera in cameras]
    frames = [list(rng.integers(0, 256, shape, dtype=np.uint8)) for shape in shapes]
    found = {}
    for name, (vision, _) in engines.items():
        pairs = zip(cameras, frames, strict=True)
        waiting = [vision.start(of, camera) for camera, of in pairs]
        found[name] = np.concatenate([features().reshape(-1) for features in waiting])
    width = bundle.manifest.geometry.vision.out_hidden_size
    ours, theirs = (of.reshape(-1, width) for of in found.values())
    assert cosines(ours, theirs).min() > COSINE


def test_a_whole_plan_is_made_from_frames(bundle, engines):
    from autovla_rt.runtime.planner import Planner
    from autovla_rt.runtime.scene import Request

    rng = np.random.default_rng(2)
    frames = {
        camera.name: list(
            rng.integers(0, 256, (4, *camera_size(bundle, camera), 3), dtype=np.uint8)
        )
        for camera in bundle.manifest.cameras
    }
    planner = Planner(bundle, *engines["gpu"])
    plans = [planner.plan(Request(frames, 5.0, 0.1, "turn left"), mode="auto") for _ in range(3)]
    assert len({tuple(plan.action_tokens) for plan in plans}) == 1  # captured, replayed: the same
    assert len(plans[0].trajectory) == bundle.manifest.actions.num_poses


def camera_size(bundle, camera):
    """(height, width) of frames that give a camera's grid."""
    manifest = bundle.manifest
    vision = manifest.geometry.vision
    rows, columns = (side * vision.patch_size for side in camera.grid[1:])
    scaled = [(round(columns * by), round(rows * by)) for by in np.arange(1, 6, 0.05)]
    width, height = next(
        size
        for size in [(1920, 1080), (1600, 900), *scaled]
        if video_grid(*size, manifest.preprocessing, vision) == camera.grid
    )
    return height, width


def test_states_and_logits_in_every_size_of_pass(bundle, engines):
    hidden = bundle.manifest.geometry.language.hidden_size
    gpu, cpu = (engines[name][1] for name in ("gpu", "cpu"))
    rng = np.random.default_rng(0)
    for count in (100, 1, 12, 12, 12, 3, 40, 1, 1):  # a size that comes again is replayed
        embeddings = (0.02 * rng.standard_normal((count, hidden))).astype(np.float32)
        found, expected = (engine.extend(embeddings, 1) for engine in (gpu, cpu))
        assert cosines(found, expected).min() > COSINE, count
        assert cosines(gpu.logits(found), cpu.logits(expected)).min() > COSINE, count
        gpu.truncate(gpu.length - count // 2)
        cpu.truncate(cpu.length - count // 2)


def test_one_pass_or_many_are_the_same_states(bundle, engines):
    hidden = bundle.manifest.geometry.language.hidden_size
    _, gpu = engines["gpu"]
    embeddings = (0.02 * np.random.default_rng(1).standard_normal((24, hidden))).astype(np.float32)
    start = gpu.length
    whole = gpu.extend(embeddings)
    gpu.truncate(start)
    cut = np.concatenate([gpu.extend(part) for part in np.split(embeddings, [1, 3, 15])])
    assert cosines(whole, cut).min() > COSINE
