"""Rescaled weights are the same model, to rounding."""

import numpy as np
import pytest

from autovla_rt.config import Camera
from autovla_rt.errors import TargetError
from autovla_rt.export.calibration import calibrated_weights
from autovla_rt.export.calibration.calibrated_weights import CalibratedWeights
from autovla_rt.export.calibration.groups import language_groups, vision_groups
from autovla_rt.export.calibration.search import Method
from autovla_rt.export.calibration.statistics import LayerInput, write_statistics
from autovla_rt.export.graph.eager import EagerOps, arrays_of
from autovla_rt.export.graph.language import language_layer
from autovla_rt.export.graph.vision import vision_block, vision_embedding, vision_merger
from autovla_rt.export.passes.static_windows import static_windows

CAMERA = Camera(name="front", grid=(2, 8, 8))
COARSE = Method(
    weights=np.rint,
    inputs=lambda rows: rows,
    sizes=np.abs,
    mean_size=False,
    scales=lambda largest, _mean, _weight, a: (largest ** (2 * a),),
)


@pytest.fixture(scope="module")
def groups(model):
    geometry = model.geometry
    return [*vision_groups(geometry.vision), *language_groups(geometry.language)]


@pytest.fixture(scope="module")
def rescaled(model, groups, tmp_path_factory):
    """Every group rescaled by much, as if rounding were coarse."""
    folder = tmp_path_factory.mktemp("statistics")
    rng = np.random.default_rng(0)
    for step in dict.fromkeys(group.step for group in groups):
        sites = {}
        for group in groups:
            if group.step == step:
                spread = np.exp(rng.standard_normal(len(group.channels)))
                rows = (spread * rng.standard_normal((8, spread.size))).astype(np.float32)
                magnitudes = np.abs(rows)
                sites[group.readers[0]] = LayerInput(
                    magnitudes.max(axis=0), magnitudes.mean(axis=0), rows
                )
        write_statistics(folder / f"{step}.safetensors", sites, {})
    weights = CalibratedWeights(model.weights(), groups, folder, lambda _: "int8_sq", 128)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(calibrated_weights.METHODS, "int8_sq", lambda _block: COARSE)
        weights.fit(model.weights(), lambda _: None)
    return weights


def vision(weights, geometry):
    windows = static_windows(geometry, *CAMERA.grid[1:])
    rng = np.random.default_rng(1)
    ops = EagerOps(weights)
    patches = ops.hold([rng.standard_normal((2, 64, geometry.patch_width), np.float32)])
    states = vision_embedding(ops, geometry, windows, patches)
    for index in range(geometry.depth):
        states = vision_block(ops, geometry, windows, index, states)
    return arrays_of(vision_merger(ops, geometry, windows, states[1]))[0]


def logits(weights, geometry):
    rng = np.random.default_rng(1)
    angles = rng.uniform(0, 6, (20, geometry.head_dim // 2)).astype(np.float32)
    ops = EagerOps(weights, (np.cos(angles), np.sin(angles)))
    x = ops.hold([rng.standard_normal((20, geometry.hidden_size), np.float32)])
    states = x, ops.rms_norm(x, "model.layers.0.input_layernorm.weight", 1e-6)
    for index in range(geometry.num_hidden_layers):
        states = language_layer(ops, geometry, index, states)
    return arrays_of(ops.linear(states[1], "lm_head", bias=False))[0]


def test_a_vision_tower_stays_what_it_was(model, rescaled):
    geometry = model.geometry.vision
    before = vision(model.weights(), geometry)
    after = vision(rescaled, geometry)
    np.testing.assert_allclose(after, before, atol=1e-4 * np.abs(before).max())


def test_a_language_model_and_its_heads_stay_what_they_were(model, rescaled):
    geometry = model.geometry.language
    before, after = (logits(weights, geometry) for weights in (model.weights(), rescaled))
    np.testing.assert_allclose(after, before, atol=1e-4 * np.abs(before).max())


def test_every_group_was_rescaled(model, groups, rescaled):
    weights = model.weights()
    for group in groups:
        for reader in group.readers if group.writers else ():
            name = f"{reader}.weight"
            changed = rescaled.rows(name, 0, 4) != weights.rows(name, 0, 4)
            assert changed.any(), name
        for writer in group.writers:
            size = weights.shape(writer)[0]
            changed = rescaled.rows(writer, 0, size) != weights.rows(writer, 0, size)
            assert changed.any(), writer


def test_embeddings_stay_though_the_head_is_tied_to_them(model, rescaled):
    name = "model.embed_tokens.weight"
    np.testing.assert_array_equal(rescaled.rows(name, 5, 9), model.weights().rows(name, 5, 9))


def test_a_width_that_no_block_divides_is_named(model, tmp_path):
    groups = language_groups(model.geometry.language)
    weights = CalibratedWeights(model.weights(), groups, tmp_path, lambda _: "int4_awq", 96)
    with pytest.raises(TargetError, match=r"the 256 inputs of model\.layers\.0\.self_attn\.q_proj"):
        weights.fit(model.weights(), print)


def test_the_head_that_stays_in_float32_is_not_clipped(model, groups, tmp_path, monkeypatch):
    width = model.geometry.language.hidden_size
    rows = np.random.default_rng(0).standard_normal((16, width)).astype(np.float32)
    (head,) = (group for group in groups if "text_head" in group.readers)
    seen = LayerInput(np.abs(rows).max(axis=0), np.abs(rows).mean(axis=0), rows)
    write_statistics(tmp_path / f"{head.step}.safetensors", {"text_head": seen}, {})
    weights = CalibratedWeights(model.weights(), [head], tmp_path, lambda _: "int4_awq", 32)
    weights.fit(model.weights(), lambda _: None)
    text, full = (weights.rows(f"{name}.weight", 0, 50) for name in ("text_head", "lm_head"))
    assert (np.abs(text) <= np.abs(full) + 1e-6).all()
    assert (text != full).any()
