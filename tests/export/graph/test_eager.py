"""What is computed at once equals what ONNX Runtime computes of the written graphs."""

import numpy as np
import pytest

from autovla_rt.bundle import load_bundle
from autovla_rt.demo.world_engine import build_world_engine
from autovla_rt.export.graph.eager import Branches, EagerOps, arrays_of
from autovla_rt.export.graph.language import language_layer
from autovla_rt.export.graph.vision import vision_block, vision_embedding, vision_merger
from autovla_rt.export.passes.static_windows import static_windows
from autovla_rt.runtime.engines import open_engines

ROUNDING = 2e-4


@pytest.fixture(scope="module")
def engines(demo, tmp_path_factory):
    folder = tmp_path_factory.mktemp("fp32") / "engine"
    build_world_engine(demo.base.parent, folder, "fp32", "cpu")
    bundle = load_bundle(folder)
    vision, language = open_engines(bundle, 1, use_prefix=False)
    return bundle, vision, language


def test_a_vision_tower(engines, model):
    bundle, vision, _ = engines
    geometry, grid = bundle.manifest.geometry.vision, bundle.manifest.cameras[0].grid[1:]
    windows = static_windows(geometry, *grid)
    rng = np.random.default_rng(0)
    shape = 2, grid[0] * grid[1], geometry.patch_width
    samples = [rng.standard_normal(shape, np.float32) for _ in range(3)]
    ops = EagerOps(model.weights())
    states = vision_embedding(ops, geometry, windows, ops.hold(samples))
    for index in range(geometry.depth):
        states = vision_block(ops, geometry, windows, index, states)
    features = arrays_of(vision_merger(ops, geometry, windows, states[1]))
    for patches, of in zip(samples, features, strict=True):
        np.testing.assert_allclose(of, vision.encode(patches, grid), atol=ROUNDING)


def test_a_language_model_and_sequences_of_unequal_length(engines, model):
    bundle, _, language = engines
    geometry = bundle.manifest.geometry.language
    rng = np.random.default_rng(0)
    sequences = [language.embed(rng.integers(0, 2000, count)) for count in (5, 90, 33)]
    tables = language._tables["cos"], language._tables["sin"]
    ops = EagerOps(model.weights(), tables)
    x = ops.hold(sequences)
    states = x, ops.rms_norm(x, "model.layers.0.input_layernorm.weight", geometry.rms_norm_eps)
    for index in range(geometry.num_hidden_layers):
        states = language_layer(ops, geometry, index, states)
    for embeddings, of in zip(sequences, arrays_of(states[1]), strict=True):
        language.truncate(0)
        np.testing.assert_allclose(of, language.extend(embeddings), atol=ROUNDING)


def test_continuations_side_by_side_are_what_each_is_alone(engines, model):
    bundle, _, language = engines
    geometry = bundle.manifest.geometry.language
    rng = np.random.default_rng(0)
    text, *ways = (language.embed(rng.integers(0, 2000, count)) for count in (20, 5, 9))
    tables = language._tables["cos"], language._tables["sin"]

    def states(samples, layouts):
        ops = EagerOps(model.weights(), tables, layouts)
        x = ops.hold(samples)
        pair = x, ops.rms_norm(x, "model.layers.0.input_layernorm.weight", geometry.rms_norm_eps)
        for index in range(geometry.num_hidden_layers):
            pair = language_layer(ops, geometry, index, pair)
        return arrays_of(pair[1])

    (together,) = states([np.concatenate([text, *ways])], [Branches.of(20, (5, 9))])
    first, second = states([np.concatenate([text, way]) for way in ways], None)
    np.testing.assert_allclose(together[:25], first, atol=1e-4)
    np.testing.assert_allclose(together[25:], second[20:], atol=1e-4)


def test_every_linear_layer_is_shown_what_it_reads(engines, model):
    geometry = engines[0].manifest.geometry.language
    seen = {}

    def observe(modules, name, rows):
        seen[modules] = name, [part.shape for part in rows]

    ops = EagerOps(model.weights(), (np.ones((4, 32), np.float32),) * 2, observe=observe)
    x = ops.hold([np.ones((4, geometry.hidden_size), np.float32)] * 2)
    language_layer(ops, geometry, 0, (x, x))
    layer = "model.layers.0"
    projections = tuple(f"{layer}.self_attn.{name}_proj" for name in "qkv")
    assert seen[projections] == (x, [(4, geometry.hidden_size)] * 2)
    gate, up = (f"{layer}.mlp.{name}_proj" for name in ("gate", "up"))
    assert seen[gate,] == seen[up,]
    assert seen[f"{layer}.mlp.down_proj",][1] == [(4, geometry.intermediate_size)] * 2


def test_a_whole_model_is_not_described(model):
    ops = EagerOps(model.weights())
    with pytest.raises(NotImplementedError, match="hold values"):
        ops.input("patches", "float32", [1])
    with pytest.raises(NotImplementedError, match="look at its value"):
        ops.output(ops.hold([]), "features", "float32", [1])
