"""What a wrong detail would cost: each must exceed the parity tolerance at least tenfold.

Without these, weights that make flat logits could hide a missing window or a wrong position.
"""

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from autovla_rt.bundle import load_bundle
from autovla_rt.export.emit.graphs import emit_vision
from autovla_rt.export.emit.tables import emit_rotary
from autovla_rt.export.graph.dialect import Formats
from autovla_rt.export.graph.ort import DIALECT, OrtOps
from autovla_rt.export.open_model import ModelFiles, open_model
from autovla_rt.export.passes.static_mrope import rotary_tables
from autovla_rt.export.weight_source import ModelWeights
from autovla_rt.runtime.backends.ort import OrtLanguage, OrtVision

# One shape is enough for a negative control.
pytestmark = [pytest.mark.slow, pytest.mark.parametrize("pair", ["gqa8-cot-cpu"], indirect=True)]

TOLERANCE = 2e-4
GRID = (16, 30)


class Folder:
    """A bundle whose files are looked up in another folder first."""

    def __init__(self, bundle, folder):
        self.manifest = bundle.manifest
        self._bundle, self._folder = bundle, folder

    def path(self, name):
        replaced = self._folder / name
        return replaced if replaced.exists() else self._bundle.path(name)


@pytest.fixture
def bundle(pair):
    return load_bundle(pair.folder / "engine")


@pytest.fixture
def weights(pair, checkout):
    model = open_model(
        ModelFiles(pair.folder / "base", pair.folder / "config.yaml", recipe=checkout)
    )
    yield ModelWeights(model.checkpoint, tied=True, action_start_id=model.actions.action_start_id)
    model.checkpoint.close()


def exceeds(error):
    """Whether an error is at least ten times the parity tolerance; printed for bench/README.md."""
    print(f"largest error {error:.1e}")
    return error > 10 * TOLERANCE


def vision_error(pair, bundle, weights, folder, vision):
    """Largest difference from transformers of a tower described with a changed geometry."""
    geometry = bundle.manifest.geometry.model_copy(update={"vision": vision})
    camera = bundle.manifest.cameras[0]
    formats = Formats.uniform(bundle.manifest.precision.vision)
    emit_vision(DIALECT, weights, geometry, [camera], formats, folder)
    rng = np.random.default_rng(0)
    patches = rng.standard_normal((2, GRID[0] * GRID[1], 1176)).astype(np.float32)
    actual = OrtVision(Folder(bundle, folder)).encode(patches, GRID)
    with torch.no_grad():
        (expected,) = pair.reference.model.get_video_features(
            torch.from_numpy(patches.reshape(-1, 1176)), torch.tensor([[2, *GRID]])
        )
    return np.abs(actual.reshape(expected.shape) - expected.numpy()).max()


def logits_error(pair, bundle, folder, driving_request):
    """Largest difference from the right engine of one with other rotary tables."""
    embeddings = pair.planner.encode(driving_request).embeddings
    right, wrong = (
        engine.logits(engine.extend(embeddings[engine.length :])[-1:])
        for engine in (
            pair.planner._language,
            OrtLanguage(Folder(bundle, folder), use_prefix=False),
        )
    )
    return np.abs(right - wrong).max()


def test_the_control_itself_is_within_tolerance(pair, bundle, weights, tmp_path):
    vision = bundle.manifest.geometry.vision
    assert vision_error(pair, bundle, weights, tmp_path, vision) < TOLERANCE


def test_no_windows(pair, bundle, weights, tmp_path):
    vision = bundle.manifest.geometry.vision
    changed = vision.model_copy(update={"fullatt_block_indexes": tuple(range(vision.depth))})
    assert exceeds(vision_error(pair, bundle, weights, tmp_path, changed))


def test_tanh_gelu_in_the_merger(pair, bundle, weights, tmp_path, monkeypatch):
    monkeypatch.setattr(OrtOps, "gelu", lambda ops, x: ops.contrib("FastGelu", [x])[0])
    vision = bundle.manifest.geometry.vision
    assert exceeds(vision_error(pair, bundle, weights, tmp_path, vision))


def test_plain_rotary(pair, bundle, tmp_path, driving_request):
    capacity = bundle.manifest.kv_capacity
    plain = np.tile(np.arange(capacity + 1), (3, 1))
    cos, sin = rotary_tables(bundle.manifest.geometry, plain)
    save_file({"cos": cos, "sin": sin}, tmp_path / "rotary.safetensors")
    assert exceeds(logits_error(pair, bundle, tmp_path, driving_request))


def test_four_tokens_per_second(pair, bundle, tmp_path, driving_request):
    geometry = bundle.manifest.geometry
    vision = geometry.vision.model_copy(update={"tokens_per_second": 4.0})
    geometry = geometry.model_copy(update={"vision": vision})
    path = tmp_path / "rotary.safetensors"
    manifest = bundle.manifest
    emit_rotary(geometry, bundle.prompt(), manifest.cameras, manifest.kv_capacity, path)
    assert not np.array_equal(
        load_file(path)["cos"], load_file(bundle.path("rotary.safetensors"))["cos"]
    )
    assert exceeds(logits_error(pair, bundle, tmp_path, driving_request))
