"""A token's result does not depend on what shares its pass, at any precision.

Prefix KV, temporal cache, jump-forward and drafts rest on this. Float kernels may round differently
for one row and for ten, so results are equal to rounding; a per-tensor activation scale would
differ by a large part of the output.
"""

import zlib

import numpy as np
import pytest
from safetensors.numpy import save_file

from autovla_rt.config import Camera, Geometry, LanguageGeometry, VisionGeometry
from autovla_rt.errors import BundleError
from autovla_rt.export.emit.graphs import emit_language, emit_vision
from autovla_rt.export.emit.tables import emit_tables
from autovla_rt.export.formats import read_choice
from autovla_rt.export.graph.dialect import Formats, dialect_of
from autovla_rt.export.graph.ort_linear import LINEARS, Int8Linear
from autovla_rt.export.passes.static_mrope import mrope_positions, rotary_tables
from autovla_rt.export.settings import Settings
from autovla_rt.export.tensors.model_names import expected_shapes
from autovla_rt.export.weight_source import ModelWeights
from autovla_rt.runtime.engines import open_engines

GEOMETRY = Geometry(
    vision=VisionGeometry(
        depth=3,
        hidden_size=128,
        num_heads=2,
        intermediate_size=208,  # divides by no int4 block, like the real 3420
        out_hidden_size=256,
        fullatt_block_indexes=(1,),
    ),
    language=LanguageGeometry(
        hidden_size=256,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=1,
        head_dim=64,
        intermediate_size=384,
        vocab_size=640,
        rms_norm_eps=1e-6,
        rope_theta=1e6,
        mrope_section=(8, 12, 12),
        tie_word_embeddings=True,
    ),
)
CAPACITY = 64
CAMERA = Camera(name="front", grid=(2, 8, 10))
ROUNDING = 2e-5
CHOICE = (100, 300)
CPU = {"ort": "cpu", "openvino": "x86"}


class RandomWeights:
    """A checkpoint whose tensors follow from their names; a few input channels are outliers."""

    def __init__(self):
        self._shapes = expected_shapes(GEOMETRY)

    def shape(self, name):
        return self._shapes[name]

    def read_rows(self, name, start, stop):
        shape = self._shapes[name]
        rng = np.random.default_rng(zlib.crc32(name.encode()))
        values = rng.standard_normal(shape).astype(np.float32)
        if "norm" in name or "ln_q" in name:
            values = 1 + 0.1 * values
            values[:3] *= 20
        elif len(shape) > 1:
            values *= 1.5 / np.sqrt(np.prod(shape[1:]))
        return values[start:stop].astype(np.float32)


class Bundle:
    """The part of a bundle that the backend reads."""

    def __init__(self, folder, precision, backend):
        self.precision, self.backend = precision, backend
        self.folder = folder
        self.manifest = self
        self.geometry, self.kv_capacity, self.cameras = GEOMETRY, CAPACITY, (CAMERA,)
        self.files = {}

    def path(self, name):
        return self.folder / name


class PerTensorInt8(Int8Linear):
    """The mistake that these tests are there for: one activation scale for a whole pass."""

    def _activation(self, graph, x):
        axes = graph.constant("both_axes", np.array([0, 1], np.int64))
        (largest,) = graph.node("ReduceMax", [graph.node("Abs", [x])[0], axes], keepdims=1)
        (unit,) = graph.node("Div", [x, largest])
        scale = graph.constant("activation_scale", np.array(1 / 127, np.float32))
        zero = graph.constant("activation_zero_point", np.array(128, np.uint8))
        return graph.node("QuantizeLinear", [unit, scale, zero])[0], largest


class RandomRanges:
    """What a calibration would say of keys and values."""

    def largest_kv(self, layer):
        width = GEOMETRY.language.num_key_value_heads * GEOMETRY.language.head_dim
        rng = np.random.default_rng(layer)
        return tuple(rng.uniform(3, 6, width).astype(np.float32) for _ in ("keys", "values"))


ENGINES = [
    *(("ort", precision, precision) for precision in LINEARS),
    ("ort", "fp32", "fp32,kv=int8"),
    ("ort", "int8,vision_ends=fp32", "int8,mlp=int4,text_head=fp32,kv=int8"),
    ("openvino", "int8,vision_ends=fp32", "int8,attention=int4"),
    ("openvino", "fp32", "fp32"),
    ("openvino", "int8", "int8"),
    ("openvino", "int8", "int4"),
]


@pytest.fixture(scope="module", params=ENGINES, ids="-".join)
def engines(request, tmp_path_factory):
    return build_engines(*request.param, tmp_path_factory.mktemp("engine"))


def build_engines(backend, vision, language, folder):
    settings = Settings("engine", CPU[backend], precision=language)
    choice, precision = settings.choice, settings.parts
    formats = Formats(choice.layers(GEOMETRY.vision.depth), 128, choice.kv, RandomRanges())
    weights = ModelWeights(RandomWeights(), tied=True, action_start_id=512)
    dialect = dialect_of(backend)
    emit_vision(
        dialect,
        weights,
        GEOMETRY,
        [CAMERA],
        Formats(read_choice(vision).layers(GEOMETRY.vision.depth)),
        folder,
    )
    emit_language(dialect, weights, GEOMETRY, formats, folder)
    emit_tables(weights, GEOMETRY, precision, CHOICE, folder)
    cos, sin = rotary_tables(GEOMETRY, mrope_positions(GEOMETRY, [], CAPACITY + 1))
    save_file({"cos": cos, "sin": sin}, folder / "rotary.safetensors")
    return open_engines(Bundle(folder, precision, backend), None)


def test_a_per_tensor_scale_would_be_noticed(monkeypatch, tmp_path):
    monkeypatch.setitem(LINEARS, "int8", lambda _block: PerTensorInt8())
    with pytest.raises(AssertionError, match="Not equal"):
        test_k_tokens_in_one_pass_equal_k_passes(
            build_engines("ort", "int8", "int8", tmp_path), 10, 0
        )


@pytest.mark.parametrize("seed", range(8))  # a rounding flips an integer in one pass of several
@pytest.mark.parametrize("count", [2, 7, 10])
def test_k_tokens_in_one_pass_equal_k_passes(engines, count, seed):
    _, language = engines
    language.truncate(0)
    rng = np.random.default_rng(seed)
    embeddings = language.embed(rng.integers(0, 640, 16 + count))
    # Massive activations in one row: a per-tensor scale would crush all others.
    embeddings[17] *= 50
    language.extend(embeddings[:16])
    together = language.extend(embeddings[16:])
    language.truncate(16)
    alone = np.concatenate([language.extend(embeddings[i : i + 1]) for i in range(16, 16 + count)])
    assert np.abs(together).max() > 1
    # Float kernels round differently for one row (2e-5 of the largest value seen); a flipped
    # integer costs 3e-3.
    np.testing.assert_allclose(together, alone, rtol=0, atol=1e-4 * np.abs(alone).max())


@pytest.mark.parametrize("parts", [(2,) * 8, (3, 13), (8, 8), (11, 5)])
def test_passes_of_two_rows_or_more_agree_bit_for_bit(engines, parts):
    _, language = engines
    embeddings = language.embed(np.arange(40))
    language.truncate(0)
    whole = language.extend(embeddings)[24:]
    language.truncate(0)
    language.extend(embeddings[:24])
    bounds = np.cumsum(parts)[:-1]
    split = np.concatenate([language.extend(part) for part in np.split(embeddings[24:], bounds)])
    np.testing.assert_array_equal(whole, split)


def test_prefill_in_one_pass_equals_two(engines):
    _, language = engines
    language.truncate(0)
    embeddings = language.embed(np.arange(40))
    whole = language.extend(embeddings)
    language.truncate(0)
    split = np.concatenate([language.extend(embeddings[:23]), language.extend(embeddings[23:])])
    np.testing.assert_allclose(whole, split, rtol=0, atol=ROUNDING * np.abs(split).max())


def test_states_of_a_few_rows_are_those_of_all(engines):
    _, language = engines
    embeddings = language.embed(np.arange(40))
    states = {}
    for last in (40, 1, 2, 11, None):
        language.truncate(0)
        states[last] = language.extend(embeddings, last)
        assert language.length == 40
        assert len(states[last]) == (last or 40)
    np.testing.assert_array_equal(states[None], states[40])
    for last in (1, 2, 11):
        np.testing.assert_allclose(
            states[last], states[40][-last:], rtol=0, atol=ROUNDING * np.abs(states[40]).max()
        )


def test_the_choice_is_two_rows_of_the_head(engines):
    _, language = engines
    language.truncate(0)
    hidden = language.extend(language.embed(np.arange(40)), 3)
    expected = (
        hidden
        @ ModelWeights(RandomWeights(), tied=True, action_start_id=512)
        .rows("lm_head.weight", 0, 512)
        .T
    )
    assert np.abs(expected).max() > 1
    choice = language.choice_logits(hidden, CHOICE)
    np.testing.assert_allclose(choice, expected[:, list(CHOICE)], rtol=0, atol=1e-4)


def test_a_choice_of_other_tokens_is_refused(engines):
    _, language = engines
    with pytest.raises(BundleError, match=r"tokens \(100, 301\).*those of \(100, 300\)"):
        language.choice_logits(np.zeros((1, 256), np.float32), (100, 301))


def test_rollback_leaves_no_trace(engines):
    _, language = engines
    language.truncate(0)
    embeddings = language.embed(np.arange(30))
    expected = language.extend(embeddings)[-1]
    language.truncate(10)
    language.extend(embeddings[:15] * 7)
    language.truncate(10)
    np.testing.assert_allclose(
        language.extend(embeddings[10:])[-1], expected, rtol=0, atol=ROUNDING * abs(expected).max()
    )


def test_one_temporal_patch_alone_equals_in_a_batch(engines):
    vision, _ = engines
    rng = np.random.default_rng(1)
    patches = rng.standard_normal((6, 80, 1176)).astype(np.float32)
    patches[3] *= 30
    grid = CAMERA.grid[1:]
    together = vision.encode(patches, grid)
    alone = np.concatenate([vision.encode(patches[i : i + 1], grid) for i in range(6)])
    assert np.abs(together).max() > 1
    np.testing.assert_allclose(together, alone, rtol=0, atol=ROUNDING * np.abs(alone).max())
