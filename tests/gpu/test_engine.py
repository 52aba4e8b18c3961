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
    from autovla_rt.runtime.backends.tensorrt import TensorRtDevice

    devices = {"gpu": TensorRtDevice(bundle), "cpu": OnnxDevice()}
    return {
        name: (DeviceVision(bundle, device), DeviceLanguage(bundle, device))
        for name, device in devices.items()
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
