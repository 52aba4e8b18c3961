"""The `standard` dialect's graphs in ONNX Runtime, against the model computed in NumPy.

Layer by layer a quantized graph computes what its format says, to rounding. A whole graph with
static activation scales can be compared only loosely: a value at the border between two codes falls
to either side, and later layers round the difference up. The reference's own features move by 3 %
when random patches are moved by a millionth.
"""

from dataclasses import dataclass, replace
from functools import cache

import numpy as np
import onnx
import pytest
from random_calibration import CAMERAS, calibrate
from standard_graphs import StandardLanguage, observe_layers, open_unrewritten, typed

from autovla_rt.config import SPARE_POSITIONS
from autovla_rt.errors import CheckpointError, TargetError
from autovla_rt.export.calibrate import language_weights, vision_weights
from autovla_rt.export.emit.graphs import emit_language, emit_vision
from autovla_rt.export.graph.dialect import Formats
from autovla_rt.export.graph.eager import UNROUNDED, EagerOps, arrays_of
from autovla_rt.export.graph.float16 import RangeCheck, kind_of
from autovla_rt.export.graph.language import language_layer
from autovla_rt.export.graph.qdq import QDQ, QdqRounding, input_scale
from autovla_rt.export.graph.standard import DIALECT
from autovla_rt.export.graph.vision import vision_block, vision_embedding, vision_merger
from autovla_rt.export.passes.static_mrope import mrope_positions, rotary_tables
from autovla_rt.export.passes.static_windows import static_windows
from autovla_rt.export.progress import NoProgress
from autovla_rt.export.settings import Settings
from autovla_rt.export.weight_source import matrix_chunks

CAPACITY = 96
GRID = CAMERAS[0].grid[1:]
FLOAT = ["fp16"]
WEIGHTS_ALONE = ["int8_wo", "int8_wo/int4"]
MIXED = (
    "int8,visual.blocks.1=fp8,visual.blocks.2.mlp.down_proj=fp16,text_head=fp16,"
    "model.layers.0.mlp.gate_proj=int8_wo,model.layers.1.self_attn=int4,model.layers.2=fp16"
)
STATIC = ["int8", "int8_sq", "int8_sq/int4_awq", "fp8", "mixed"]
EXACT = 1e-5
"""Of the largest value: float32 sums of up to 1176 products in another order (seen: 1e-6)."""
HALF = 2e-3
"""Likewise for a graph in float16, which ONNX Runtime computes in float32 and rounds here and
there: a few times 2^-11 (seen: 8e-4)."""
FLIPS = 0.06
"""Of the root mean square, which a code that falls to another side can cost a whole graph; a row
that depended on others, or a stale cache, would cost about 1 (seen here: 4e-8)."""
TOLERANCE = {"float32": EXACT, "float16": HALF}


@dataclass(frozen=True)
class Graphs:
    """Exported graphs and what they were made of."""

    folder: object
    geometry: object
    vision: tuple
    language: tuple

    def session(self, name=f"vision_{GRID[0]}x{GRID[1]}.onnx"):
        return PatchSession(open_unrewritten(self.folder / name))

    def text(self, name="language.onnx"):
        path, geometry = self.folder / name, self.geometry
        return StandardLanguage(path, geometry.language, tables(geometry), CAPACITY)


class PatchSession:
    """A vision tower's, which takes patches in its own type."""

    def __init__(self, session):
        self.run = lambda names, given: session.run(
            names, {"patches": typed(given["patches"], session)}
        )
        self.get_outputs = session.get_outputs


class Remembered:
    """Weights that are clipped and rescaled once."""

    def __init__(self, source):
        self.shape = source.shape
        self.rows = cache(source.rows)


@pytest.fixture(scope="module")
def calibration(model, tmp_path_factory):
    return calibrate(model, tmp_path_factory.mktemp("calibration") / "c")


@pytest.fixture(scope="module")
def graphs(model, calibration, tmp_path_factory):
    """A function that exports a precision, in float32 or float16."""
    made = {}

    def export(precision, floats):
        if (precision, floats) not in made:
            given = calibration if precision in STATIC else None
            text = {"mixed": MIXED}.get(precision, precision)
            chosen = Settings("x", "rtx-sm89", text, 64, CAPACITY, calibration=given)
            folder = tmp_path_factory.mktemp("graphs")
            vision, language = (
                (Remembered(weights), replace(formats, floats=floats))
                for weights, formats in (
                    of(model, chosen, NoProgress()) for of in (vision_weights, language_weights)
                )
            )
            emit_vision(DIALECT, vision[0], model.geometry, CAMERAS[:1], vision[1], folder)
            emit_language(DIALECT, language[0], model.geometry, language[1], folder)
            made[precision, floats] = Graphs(folder, model.geometry, vision, language)
        return made[precision, floats]

    return export


def tables(geometry):
    return rotary_tables(geometry, mrope_positions(geometry, [], CAPACITY + SPARE_POSITIONS))


def states_of(weights, geometry, embeddings, rounding=UNROUNDED):
    """Final hidden states of a text, in NumPy."""
    text = geometry.language
    ops = EagerOps(weights, tables(geometry), rounding=rounding)
    x = ops.hold([embeddings])
    states = x, ops.rms_norm(x, "model.layers.0.input_layernorm.weight", text.rms_norm_eps)
    for index in range(text.num_hidden_layers):
        states = language_layer(ops, text, index, states)
    return arrays_of(states[1])[0]


def features_of(weights, geometry, patches, rounding=UNROUNDED):
    """Features of temporal patches, in NumPy."""
    windows = static_windows(geometry.vision, *GRID)
    ops = EagerOps(weights, rounding=rounding)
    states = vision_embedding(ops, geometry.vision, windows, ops.hold([patches]))
    for index in range(geometry.vision.depth):
        states = vision_block(ops, geometry.vision, windows, index, states)
    return arrays_of(vision_merger(ops, geometry.vision, windows, states[1]))[0]


def close(actual, expected, share):
    np.testing.assert_allclose(actual, expected, rtol=0, atol=share * np.abs(expected).max())


def distance(actual, expected):
    return np.sqrt(np.mean((actual - expected) ** 2) / np.mean(expected**2))


@pytest.mark.parametrize("floats", TOLERANCE)
@pytest.mark.parametrize("precision", FLOAT + WEIGHTS_ALONE)
def test_a_graph_with_float_activations_is_the_reference(
    graphs, embeddings, patches, precision, floats
):
    made = graphs(precision, floats)
    weights, formats = made.language
    expected = states_of(weights, made.geometry, embeddings, QdqRounding(formats))
    close(made.text().extend(embeddings), expected, TOLERANCE[floats])
    weights, formats = made.vision
    expected = features_of(weights, made.geometry, patches, QdqRounding(formats))
    (features,) = made.session().run(["features"], {"patches": patches})
    close(features, expected, TOLERANCE[floats])


@pytest.mark.parametrize("floats", TOLERANCE)
@pytest.mark.parametrize("part", ["vision", "language"])
@pytest.mark.parametrize("precision", WEIGHTS_ALONE + STATIC)
def test_every_layer_computes_what_its_format_says(
    graphs, embeddings, patches, precision, floats, part
):
    made = graphs(precision, floats)
    weights, formats = getattr(made, part)
    if part == "vision":
        path, layers = observe_layers(made.folder / f"vision_{GRID[0]}x{GRID[1]}.onnx")
        session = made.session(path.name)
        names = [output.name for output in session.get_outputs()]
        found = dict(zip(names, session.run(names, {"patches": patches}), strict=True))
    else:
        path, layers = observe_layers(made.folder / "language.onnx")
        found = made.text(path.name).observe(embeddings)
    assert len(layers) > 15
    rounding = QdqRounding(formats)
    for layer in layers:
        read, rounded, result = (
            found[name].astype(np.float32) for name in (layer.read, layer.rounded, layer.result)
        )
        expected = rounding.inputs(layer.modules, read)
        np.testing.assert_array_equal(rounded, expected, err_msg=str(layer))
        chunks = matrix_chunks(weights, layer.modules)
        matrix = np.concatenate([rounding.weights(layer.modules, chunk) for chunk in chunks])
        product = rounded @ matrix.T
        if layer.bias:
            names = [f"{module}.bias" for module in layer.modules]
            product += np.concatenate([weights.rows(n, 0, weights.shape(n)[0]) for n in names])
        close(result, product, TOLERANCE[floats])


@pytest.mark.parametrize("precision", STATIC)
def test_a_whole_graph_is_nearer_to_the_reference_than_that_is_to_the_model(
    model, graphs, embeddings, patches, precision
):
    made = graphs(precision, "float32")
    found = made.text().extend(embeddings), made.session().run(None, {"patches": patches})[0]
    parts = (states_of, made.language, embeddings), (features_of, made.vision, patches)
    for actual, (compute, (weights, formats), given) in zip(found, parts, strict=True):
        expected = compute(weights, made.geometry, given, QdqRounding(formats))
        unrounded = compute(model.weights(), made.geometry, given)
        assert distance(actual, expected) < distance(expected, unrounded) < 0.3


@pytest.mark.parametrize("precision", FLOAT + WEIGHTS_ALONE + STATIC)
def test_k_tokens_in_one_pass_equal_several_with_rollback(graphs, embeddings, precision):
    text = graphs(precision, "float32").text()
    together = text.extend(embeddings)
    text.length = 0
    text.extend(embeddings[:20])
    text.extend(embeddings[:15] * 7)
    text.length = 20
    parts = embeddings[20:25], embeddings[25:26], embeddings[26:]
    several = np.concatenate([text.extend(part) for part in parts])
    assert distance(several, together[20:]) < (FLIPS if precision in STATIC else EXACT)


def test_states_of_the_last_rows_are_those_of_all(graphs, embeddings):
    text = graphs("fp16", "float32").text()
    together = text.extend(embeddings)
    text.length = 0
    close(text.extend(embeddings, 3), together[-3:], EXACT)


@pytest.mark.parametrize("precision", FLOAT + WEIGHTS_ALONE + STATIC)
def test_one_temporal_patch_alone_equals_in_a_batch(graphs, patches, precision):
    session = graphs(precision, "float32").session()
    (together,) = session.run(["features"], {"patches": patches})
    alone = [session.run(None, {"patches": patches[i : i + 1]})[0] for i in range(len(patches))]
    assert distance(np.concatenate(alone), together) < (FLIPS if precision in STATIC else EXACT)


def test_the_text_head(graphs, embeddings, model):
    made = graphs("fp16", "float32")
    session = open_unrewritten(made.folder / "text_head.onnx")
    (logits,) = session.run(["logits"], {"hidden": embeddings})
    weights = made.language[0]
    rows = weights.shape("text_head.weight")[0]
    close(logits, embeddings @ weights.rows("text_head.weight", 0, rows).T, EXACT)


def test_float16_ends_at_the_products(graphs, embeddings):
    """The residual stream of the float16 graph holds what float16 does not."""
    huge = embeddings * np.float32(3e5 / np.abs(embeddings).max())
    states = graphs("fp16", "float16").text().extend(huge)
    close(states, graphs("fp16", "float32").text().extend(huge), HALF)


def test_the_border_is_float32_and_the_cache_is_of_a_fixed_size(graphs):
    made = graphs("int8", "float16")
    graph = onnx.load(made.folder / "language.onnx", load_external_data=False).graph
    types = {value.name: value.type.tensor_type for value in (*graph.input, *graph.output)}
    for name, of in types.items():
        cached = name.startswith(("past_key_values.", "present."))
        whole = name in ("rows", "positions", "write_indices", "nonpad_kv_seqlen")
        number = onnx.TensorProto.INT64 if whole else onnx.TensorProto.FLOAT
        assert of.elem_type == (onnx.TensorProto.FLOAT16 if cached else number), name
        if cached:
            assert [dim.dim_value for dim in of.shape.dim] == [1, 2, CAPACITY, 64]
    assert {node.domain for node in graph.node} == {""}


def test_the_file_passes_onnx_own_check(graphs):
    folder = graphs("fp8", "float16").folder
    for name in ("language", "text_head", f"vision_{GRID[0]}x{GRID[1]}"):
        onnx.checker.check_model(folder / f"{name}.onnx", full_check=True)


class Sizes(dict):
    """Largest magnitudes by name; of values that are not listed, 1."""

    def largest(self, value):
        return self.get(value, 1)


def refused(model, folder, sizes, precision="fp16", floats="float16"):
    """Emit both parts of a model whose calibration saw such values; what was said, or None."""
    text = Settings("x", "rtx-sm89", precision, 64, CAPACITY).choice
    formats = Formats(
        text.layers(model.geometry.vision.depth),
        ranges=AnyRange(),
        half=RangeCheck(Sizes(sizes)),
        floats=floats,
    )
    try:
        emit_vision(DIALECT, model.weights(), model.geometry, CAMERAS[:1], formats, folder)
        emit_language(DIALECT, model.weights(), model.geometry, formats, folder)
    except TargetError as error:
        return str(error)
    return None


class AnyRange:
    def largest_input(self, module):
        return np.ones(4, np.float32)


HALVES = [
    "visual.patch_embed.proj.input",
    "visual.patch_embed.proj.output",
    "visual.blocks.1.attn.qkv.input",
    "visual.blocks.1.attn.qkv.output",
    "visual.blocks.1.attn.qkv.rotated",
    "visual.blocks.1.attn.qkv.scores",
    "visual.blocks.1.attn.proj.input",
    "visual.blocks.1.attn.proj.output",
    "visual.merger.mlp.0.input",
    "visual.merger.mlp.0.output",
    "visual.merger.mlp.2.input",
    "visual.merger.mlp.2.output",
    "model.layers.2.self_attn.q_proj.input",
    "model.layers.2.self_attn.q_proj.output",
    "model.layers.2.self_attn.k_proj.output",
    "model.layers.2.self_attn.v_proj.output",
    "model.layers.2.self_attn.q_proj.rotated",
    "model.layers.2.self_attn.q_proj.scores",
    "model.layers.2.self_attn.o_proj.input",
    "model.layers.2.self_attn.o_proj.output",
    "model.layers.2.mlp.gate_proj.input",
    "model.layers.2.mlp.gate_proj.output",
    "model.layers.2.mlp.up_proj.output",
    "model.layers.2.mlp.down_proj.input",
    "model.layers.2.mlp.down_proj.output",
    "text_head.input",
    "text_head.output",
]


@pytest.mark.parametrize("value", HALVES)
def test_a_value_beyond_float16_is_refused_by_name(model, tmp_path, value):
    said = refused(model, tmp_path, {value: 7e4})
    assert said.startswith(f"{value} (")
    assert "expected values up to 65504, the largest float16, got 70000" in said
    assert refused(model, tmp_path, {value: 7e4}, floats="float32") is None


@pytest.mark.parametrize("value", HALVES)
def test_a_value_above_a_quarter_is_warned_of(model, tmp_path, caplog, value):
    assert refused(model, tmp_path, {value: 16_300}) is None
    assert not caplog.records
    assert refused(model, tmp_path, {value: 17_000}) is None
    (record,) = caplog.records
    assert record.getMessage().startswith(f"{value} (")
    assert "26 % of float16's largest number" in record.getMessage()


WIDE_AROUND_CODES = {
    "a norm's result",
    "added to the residual stream",
    "logits",
}
"""What products of codes read in float32, and what they return to who reads it in float32."""


@pytest.mark.parametrize("value", HALVES)
def test_products_of_codes_have_fewer_values_in_float16(model, tmp_path, value):
    said = refused(model, tmp_path, {value: 7e4}, "int8")
    assert (said is None) == (kind_of(value).what in WIDE_AROUND_CODES)


@pytest.mark.parametrize("value", HALVES)
def test_the_way_out_that_is_named_leads_out(model, tmp_path, value):
    said = refused(model, tmp_path, {value: 7e4})
    if "choose --target cpu or x86" in said:
        return
    precision = said.rpartition("as in ")[2].removesuffix(".")
    assert precision.startswith("fp16,")
    assert refused(model, tmp_path, {value: 7e4}, precision) is None


def test_an_mlp_in_float32_computes_in_float32(graphs, embeddings, model, tmp_path):
    text = "fp16,model.layers.1.mlp=fp32,visual.merger.mlp=fp32"
    made = graphs(text, "float16")
    close(made.text().extend(embeddings), graphs("fp16", "float32").text().extend(embeddings), HALF)
    graph = onnx.load(made.folder / "language.onnx", load_external_data=False).graph
    types = {of.name: of.data_type for of in graph.initializer}
    for module in ("gate_proj", "up_proj", "down_proj"):
        assert types[f"model.layers.1.mlp.{module}.weight"] == onnx.TensorProto.FLOAT
        assert types[f"model.layers.0.mlp.{module}.weight"] == onnx.TensorProto.FLOAT16
    for name in ("language", f"vision_{GRID[0]}x{GRID[1]}"):
        onnx.checker.check_model(made.folder / f"{name}.onnx", full_check=True)


def test_static_scales_need_the_ranges_of_a_calibration():
    formats = Formats(lambda _module: "int8")
    with pytest.raises(ValueError, match="m: inputs in int8 need the ranges of a calibration"):
        input_scale(QDQ["int8"].inputs, formats, "m")


def test_weights_beyond_float16_are_refused_by_name(tmp_path, model):
    class Huge:
        def shape(self, name):
            return model.weights().shape(name)

        def rows(self, name, start, stop):
            return model.weights().rows(name, start, stop) * 1e7

    formats = Formats(lambda _module: "fp16", floats="float16")
    with pytest.raises(CheckpointError, match=r"weight: expected values that fit float16"):
        emit_language(DIALECT, Huge(), model.geometry, formats, tmp_path)
