"""The engine of a device, over ONNX Runtime: what the `ort` backend computes, by other graphs."""

from pathlib import Path

import numpy as np
import pytest
from demo_engine import REPO, run

from autovla_rt.bundle import load_bundle
from autovla_rt.prefix import prefix_length
from autovla_rt.runtime.backends.device_engine import PASS_SIZES, DeviceLanguage
from autovla_rt.runtime.backends.executor import fits
from autovla_rt.runtime.backends.onnx_executor import HostBuffer, OnnxDevice
from autovla_rt.runtime.engines import open_engines
from autovla_rt.runtime.planner import Planner
from autovla_rt.runtime.scene import read_scene

SIZE = ("--frame-size", "392x224")
CLOSE = 1e-4
MINIATURE = REPO / "calib_data" / "miniature"


def built(demo, folder, target, precision, *options):
    chosen = ("--target", target, "--precision", precision, "--kv-capacity", "512", *SIZE)
    done = run(
        "build", *demo.build_options, *chosen, *options, "--out", folder, cache=folder.parent
    )
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def bundles(demo, tmp_path_factory):
    """The demo in float32, for the device engine, new and old TensorRT, and for `ort`."""
    root = tmp_path_factory.mktemp("device")
    chosen = {
        "standard": ("cpu-standard", "fp32"),
        "plain": ("cpu-standard", "fp32", "--tensorrt", "10.3"),
        "ort": ("cpu", "fp32"),
    }
    folders = {name: built(demo, root / name, *words) for name, words in chosen.items()}
    return {name: load_bundle(folder) for name, folder in folders.items()}


@pytest.fixture(params=["standard", "plain"])
def device(bundles, request):
    """A bundle for the device engine."""
    assert bundles[request.param].manifest.dialect == request.param
    return bundles[request.param]


@pytest.fixture
def engines(bundles, device):
    return {"device": open_engines(device, 1), "ort": open_engines(bundles["ort"], 1)}


def states(count, seed=0, hidden=256):
    return np.random.default_rng(seed).standard_normal((count, hidden)).astype(np.float32)


@pytest.mark.parametrize("mode", ["fast", "slow"])
def test_plans_are_those_of_the_ort_backend(bundles, device, engines, mode):
    planners = [
        Planner(device, *engines["device"]),
        Planner(bundles["ort"], *engines["ort"]),
    ]
    for scene in sorted((MINIATURE / "scenes").iterdir())[:4]:
        request = read_scene(scene, MINIATURE / "sensors")
        ours, theirs = (planner.plan(request, mode=mode) for planner in planners)
        assert ours.action_tokens == theirs.action_tokens
        assert ours.reasoning == theirs.reasoning
        assert ours.p_slow == pytest.approx(theirs.p_slow, abs=CLOSE)
        ahead = len(device.manifest.cameras) - 1  # a pass of the prompt before each but the first
        assert ours.forward_passes == theirs.forward_passes + ahead


def test_features_are_those_of_the_ort_backend(bundles, engines):
    grid = bundles["ort"].manifest.cameras[0].grid[1:]
    width = bundles["ort"].manifest.geometry.vision.patch_width
    for count in (1, 6, 3):
        patches = states(count * grid[0] * grid[1], count, width).reshape(count, -1, width)
        ours, theirs = (engines[name][0].encode(patches, grid) for name in ("device", "ort"))
        np.testing.assert_allclose(ours, theirs, atol=CLOSE)


def test_any_passes_give_the_states_and_logits_of_the_ort_backend(engines):
    ours, theirs = engines["device"][1], engines["ort"][1]
    for count, last in ((20, 1), (1, 1), (11, None), (70, 2), (3, 2)):
        embeddings = states(count, count)
        found, expected = (engine.extend(embeddings, last) for engine in (ours, theirs))
        np.testing.assert_allclose(found, expected, atol=CLOSE)
        np.testing.assert_allclose(ours.logits(found), theirs.logits(expected), atol=CLOSE)
    assert ours.length == theirs.length


def test_a_rollback_forgets_what_the_spare_rows_of_a_pass_wrote(engines):
    ours, theirs = engines["device"][1], engines["ort"][1]
    for engine in (ours, theirs):
        engine.extend(states(40, 1), 1)
        engine.truncate(engine.length - 17)
    found, expected = (engine.extend(states(5, 2)) for engine in (ours, theirs))
    np.testing.assert_allclose(found, expected, atol=CLOSE)


def test_the_last_position_of_the_cache_is_reached_and_none_beyond(engines):
    ours, theirs = engines["device"][1], engines["ort"][1]
    room = ours.capacity - ours.length
    for count in (room - 3, 1, 1, 1):  # the last passes have no room for spare rows
        found, expected = (engine.extend(states(count, count), 1) for engine in (ours, theirs))
        np.testing.assert_allclose(found, expected, atol=CLOSE)
    assert ours.length == ours.capacity
    np.testing.assert_allclose(ours.logits(found), theirs.logits(expected), atol=CLOSE)


def test_the_prefix_is_computed_at_load_and_changes_nothing(device):
    bundle = device
    count = prefix_length(bundle.prompt())
    ids = np.array(bundle.prompt().prefix_ids[:count])
    filled = DeviceLanguage(bundle, OnnxDevice(1))
    empty = DeviceLanguage(bundle, OnnxDevice(1), use_prefix=False)
    assert (filled.prefix_length, empty.prefix_length) == (count, 0)
    empty.extend(empty.embed(ids), 1)
    found, expected = (engine.extend(states(9)) for engine in (filled, empty))
    np.testing.assert_array_equal(found, expected)
    with pytest.raises(ValueError, match="constant prefix"):
        filled.truncate(count - 1)


def test_a_bundle_of_the_standard_dialect_has_no_prefix_of_another_device(bundles):
    assert "prefix_kv.safetensors" in bundles["ort"].manifest.files
    assert "prefix_kv.safetensors" not in bundles["standard"].manifest.files


@pytest.mark.parametrize("tensorrt", ["10.3", "10.16"])
@pytest.mark.parametrize("precision", ["fp16", "fp16/int8_wo", "int8_sq", "fp16/int4_awq"])
def test_a_gpus_graphs_plan_here(demo, invoke, tmp_path, calibration, precision, tensorrt):
    fitted = () if precision in ("fp16", "fp16/int8_wo") else ("--calibration", calibration)
    words = (precision, *fitted, "--int4-block", "64", "--tensorrt", tensorrt)
    folder = built(demo, tmp_path / "engine", "cpu-standard", *words)
    assert load_bundle(folder).manifest.precision.activations == "fp16"
    words = ("plan", "--frames", REPO / "calib_data/demo", "--engine", folder, "--mode", "fast")
    plan = invoke.json(*words, "--json")
    assert (plan["status"], plan["mode"]) == ("ok", "fast")


def test_memory_stays_where_it_was_bound(device):
    """Buffers are bound by address: whoever binds one may forget it."""
    engine = DeviceLanguage(device, OnnxDevice(1))
    first = engine.extend(states(30, 4), 1)
    again = DeviceLanguage(device, OnnxDevice(1))
    garbage = [HostBuffer((1 << 16,), "float32") for _ in range(50)]
    for buffer in garbage:
        buffer.write(np.full(1 << 16, np.nan, np.float32))
    np.testing.assert_array_equal(again.extend(states(30, 4), 1), first)


@pytest.mark.parametrize(
    ("count", "room", "size"),
    [(1, 99, 2), (2, 99, 2), (13, 99, 16), (13, 14, 14), (65, 99, 65), (2, 0, 2)],
)
def test_a_pass_is_as_long_as_the_next_size_that_there_is_room_for(count, room, size):
    assert fits(PASS_SIZES, count, room) == size


def test_a_damaged_graph_is_told(bundles, tmp_path):
    path = Path(tmp_path / "language.onnx")
    path.write_bytes(b"no graph")
    with pytest.raises(Exception, match="cannot load the graph"):
        OnnxDevice(1).open(path)
