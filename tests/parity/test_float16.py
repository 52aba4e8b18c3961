"""What float16 does to the `standard` graphs, computed in torch's half (tests/support/torch_graph).

The miniature's graphs are given scenes of its own data. Its weights are trained, but a model of
this size has none of the outliers of a large one: those are planted.
"""

import re
from contextlib import closing
from dataclasses import replace
from functools import cache

import numpy as np
import onnx
import pytest
import torch
from demo_engine import REPO
from float16 import compare, write
from onnx import TensorProto
from standard_graphs import StandardLanguage, open_unrewritten
from torch_graph import FUSED, ROUNDED, TorchGraph

from autovla_rt.calibration_scenes import SampleReader
from autovla_rt.config import CAMERAS, SPARE_POSITIONS
from autovla_rt.demo.world_engine import model_files
from autovla_rt.export.build import camera_layout, engine_prompt
from autovla_rt.export.calibrate import language_weights, vision_weights
from autovla_rt.export.calibration.audit import audit
from autovla_rt.export.calibration.collect import Plan, collect
from autovla_rt.export.calibration.record import CalibrationRecord
from autovla_rt.export.emit.graphs import emit_language, emit_vision
from autovla_rt.export.graph.float16 import INPUT, OUTPUT, ROTATED, SCORES
from autovla_rt.export.graph.plain import plain_ops
from autovla_rt.export.graph.standard import DIALECT, StandardOps
from autovla_rt.export.open_model import open_model
from autovla_rt.export.passes.static_mrope import VideoSpan, mrope_positions, rotary_tables
from autovla_rt.export.progress import NoProgress
from autovla_rt.export.settings import Settings

CAPACITY = 512
VISION, LANGUAGE, HEAD = "vision_8x14.onnx", "language.onnx", "text_head.onnx"
MINIATURE = REPO / "calib_data" / "miniature"
SETTINGS = Settings(
    "x", "rtx-sm86", "fp16", 64, CAPACITY, frame_sizes=dict.fromkeys(CAMERAS, (392, 224))
)
LEAST_COSINE = 0.9995
HALF_MAX = 65504
NORM = re.compile(r"norm[12]?\.weight|ln_q\.weight")
CHANNEL, BLOCKS = 7, 3
BEYOND, SQUARED_BEYOND = 30_000, 200
"""What each of the first `BLOCKS` blocks adds to a channel of the residual stream: together more
than float16 holds, or so much that its square is more."""
USUAL = 14
"""Root mean square of the miniature's residual streams."""


class HalfResidual(StandardOps):
    """Adds up the residual stream in the graph's float type."""

    def add_rms_norm(self, x, delta, weight, epsilon):
        (total,) = self.node("Add", [self._narrow(x), self._narrow(delta)])
        return total, self.rms_norm(total, weight, epsilon)


class AllHalf(HalfResidual):
    """Computes norms in the graph's float type, too: a graph cast to float16 as a whole."""

    def rms_norm(self, x, weight, epsilon):
        narrow = self._narrow(x)
        square = self._product(narrow, narrow)
        (mean,) = self.node("ReduceMean", [square, self.integers(-1)], keepdims=1)
        (shifted,) = self.node("Add", [mean, self.constant("small", np.float16([epsilon]))])
        (normed,) = self.node("Div", [narrow, *self.node("Sqrt", [shifted])])
        (scale,) = self.node("Cast", [self.weight(weight)], to=TensorProto.FLOAT16)
        return self._product(normed, scale)


class Outliers:
    """Weights that put an outlier into the vision tower, and norms that look past such ones."""

    def __init__(self, source, outlier):
        self._source, self.shape, self._outlier = source, source.shape, outlier

    def rows(self, name, start, stop):
        rows = self._source.rows(name, start, stop).copy()
        begun = [f"visual.blocks.{index}." for index in range(BLOCKS + 1)]
        before = next((i for i, block in enumerate(begun) if name.startswith(block)), BLOCKS)
        if name.endswith("mlp.down_proj.bias") and before < BLOCKS:
            rows[CHANNEL] += self._outlier
        if NORM.search(name) and before:
            rows *= np.float32(before * self._outlier / len(rows) ** 0.5 / USUAL)
            rows[CHANNEL] = 0
        return rows


class Scene:
    """Prompt and fast answer of a scene, and the miniature's graphs, run on them."""

    def __init__(self, model, cameras, prompt, sample):
        self.model, self.cameras, self.prompt, self.sample = model, cameras, prompt, sample
        patches = sample.read_patches()
        self.patches = np.concatenate([patches[camera.name] for camera in cameras])
        ids = np.concatenate([sample.prompt.ids, sample.answers[0].ids])
        weights, name = model.weights(), "model.embed_tokens.weight"
        self.embeddings = np.concatenate([weights.rows(name, i, i + 1) for i in ids.tolist()])
        self.starts = {video.camera: video.start for video in prompt.videos}
        spans = [VideoSpan(self.starts[camera.name], camera.grid) for camera in cameras]
        positions = mrope_positions(model.geometry, spans, CAPACITY + SPARE_POSITIONS)
        self.tables = rotary_tables(model.geometry, positions)

    def plan(self):
        """What a calibration on this scene is of."""
        record = CalibrationRecord(
            checkpoint="a",
            cameras=self.cameras,
            prompt=self.prompt,
            scenes=(self.sample.token,),
            scenes_sha256="b",
        )
        return Plan(self.model.weights(), self.model.geometry, record)

    def placed(self, features):
        """What the language model reads, from features [patches, tokens, hidden]."""
        rows = self.embeddings.copy()
        by_camera = np.split(features, len(self.cameras))
        for camera, of in zip(self.cameras, by_camera, strict=True):
            start = self.starts[camera.name]
            of = of.reshape(-1, of.shape[-1])
            rows[start : start + len(of)] = of
        return rows

    def export(self, folder, floats="float16", ops=StandardOps, wrap=lambda source: source):
        """Write the graphs in a float type, of weights that may be changed."""
        dialect = replace(DIALECT, ops=ops)
        source, formats = vision_weights(self.model, SETTINGS, NoProgress())
        formats, geometry = replace(formats, floats=floats), self.model.geometry
        emit_vision(dialect, wrap(source), geometry, self.cameras[:1], formats, folder)
        source, formats = language_weights(self.model, SETTINGS, NoProgress())
        formats = replace(formats, floats=floats)
        emit_language(dialect, wrap(source), geometry, formats, folder)
        return folder


class TorchLanguage:
    """A language graph with its cache, a pass at a time."""

    def __init__(self, path, tables, attention=FUSED):
        self.graph = TorchGraph(path, attention=attention)
        self._tables, self._length = tables, 0
        self._caches = {
            name: np.zeros([dim.dim_value for dim in of.shape.dim], np.float32)
            for name, of in self.graph.inputs.items()
            if name.startswith("past_key_values.")
        }

    def extend(self, embeddings):
        """Append embeddings [k, hidden]; returns their final hidden states."""
        count = len(embeddings)
        found = self.graph.run(
            {
                "embeddings": embeddings,
                "rows": np.arange(count),
                "positions": np.arange(self._length, self._length + count)[None],
                "write_indices": np.array([self._length]),
                "nonpad_kv_seqlen": np.array([self._length + count]),
                "cos_cache": self._tables[0],
                "sin_cache": self._tables[1],
                **self._caches,
            }
        )
        self._caches = {
            name: found[name.replace("past_key_values", "present")] for name in self._caches
        }
        self._length += count
        return found["hidden"].numpy()


@pytest.fixture(scope="module")
def scene(demo):
    model = open_model(model_files(demo.base.parent))
    with closing(model.checkpoint):
        cameras = camera_layout(model, SETTINGS)
        prompt = engine_prompt(model, cameras)
        paths = sorted((MINIATURE / "scenes").glob("*.json"))[:4]
        samples = SampleReader(model, cameras, prompt).read(paths, MINIATURE / "sensors")
        yield Scene(model, cameras, prompt, samples[0])


@pytest.fixture(scope="module")
def wide(scene, tmp_path_factory):
    """The graphs in float32."""
    return scene.export(tmp_path_factory.mktemp("float32"), "float32")


@pytest.fixture(scope="module")
def half(scene, tmp_path_factory):
    """The graphs as they are for TensorRT."""
    return scene.export(tmp_path_factory.mktemp("float16"))


def two_passes(language, embeddings):
    return np.concatenate([language.extend(part) for part in np.split(embeddings, [-20])])


def features_of(graph, scene):
    return graph.run({"patches": scene.patches})["features"].numpy()


def cosines(actual, expected):
    """[n] of every token; 0 where nothing is left of it."""
    a, b = (of.reshape(-1, of.shape[-1]).astype(np.float64) for of in (actual, expected))
    norms = np.sqrt((a * a).sum(1) * (b * b).sum(1))
    return (a * b).sum(1) / np.maximum(norms, np.finfo(np.float64).tiny)


def report(what, found):
    """Print the figure of bench/README.md (shown by pytest -rP)."""
    print(f"{what}: cosine {found.min():.6f} at least, {found.mean():.6f} on average")


def test_in_float32_it_is_onnx_runtime(scene, wide):
    (features,) = open_unrewritten(wide / VISION).run(None, {"patches": scene.patches})
    np.testing.assert_allclose(features_of(TorchGraph(wide / VISION), scene), features, atol=1e-4)
    embeddings = scene.placed(features)
    geometry = scene.model.geometry.language
    theirs = StandardLanguage(wide / LANGUAGE, geometry, scene.tables, CAPACITY)
    hidden = two_passes(theirs, embeddings)
    ours = TorchLanguage(wide / LANGUAGE, scene.tables)
    np.testing.assert_allclose(two_passes(ours, embeddings), hidden, atol=1e-4)
    (logits,) = open_unrewritten(wide / HEAD).run(None, {"hidden": hidden})
    ours = TorchGraph(wide / HEAD).run({"hidden": hidden})["logits"]
    np.testing.assert_allclose(ours, logits, atol=1e-4)


@pytest.mark.parametrize("attention", [FUSED, ROUNDED])
def test_float16_keeps_the_direction_of_every_token(scene, wide, half, attention):
    require_directions(scene, wide, half, attention)


def test_so_it_does_in_the_plain_dialect(scene, wide, tmp_path):
    """Whose attention is not fused: scores and probabilities are rounded."""
    require_directions(scene, wide, scene.export(tmp_path, ops=plain_ops), "in plain operators")


def require_directions(scene, wide, half, attention):
    """Hold what graphs in float16 make of a scene against what those in float32 do."""
    expected = features_of(TorchGraph(wide / VISION), scene)
    vision = TorchGraph(half / VISION, attention=attention)
    features = features_of(vision, scene)
    language = TorchLanguage(half / LANGUAGE, scene.tables, attention)
    hidden = two_passes(language, scene.placed(features))
    head = TorchGraph(half / HEAD)
    logits = head.run({"hidden": hidden})["logits"].numpy()
    wanted = two_passes(TorchLanguage(wide / LANGUAGE, scene.tables), scene.placed(expected))
    wanted_logits = TorchGraph(wide / HEAD).run({"hidden": wanted})["logits"].numpy()
    for what, *pair in (
        ("features", features, expected),
        ("hidden states", hidden, wanted),
        ("logits", logits, wanted_logits),
    ):
        found = cosines(*pair)
        report(f"{what}, attention {attention}", found)
        assert found.min() >= LEAST_COSINE, what
    for graph in (vision, language.graph, head):
        assert graph.overflowed() == []
        types = {of.dtype for of in graph.ranges.values()}
        assert types == {torch.float16, torch.float32}


def planted(scene, folder, outlier, **options):
    """Features and final states of a checkpoint with outliers, and their graphs."""
    scene.export(folder, wrap=lambda source: Outliers(source, outlier), **options)
    vision, language = TorchGraph(folder / VISION), TorchLanguage(folder / LANGUAGE, scene.tables)
    embeddings = scene.embeddings.copy()
    embeddings[:, CHANNEL] = BLOCKS * outlier
    return (
        {"features": features_of(vision, scene), "states": two_passes(language, embeddings)},
        (vision, language.graph),
    )


@pytest.fixture(scope="module")
def outlying(scene, tmp_path_factory):
    """A function that returns what float32 graphs make of an outlier."""
    return cache(
        lambda outlier: planted(scene, tmp_path_factory.mktemp("x"), outlier, floats="float32")[0]
    )


@pytest.mark.parametrize("outlier", [BEYOND, SQUARED_BEYOND])
def test_a_residual_stream_beyond_float16_is_kept(scene, outlying, tmp_path, outlier):
    actual, graphs = planted(scene, tmp_path, outlier)
    for what, expected in outlying(outlier).items():
        found = cosines(actual[what], expected)
        report(f"{what}, outlier {outlier * BLOCKS}", found)
        assert found.min() >= LEAST_COSINE, what
    for graph in graphs:
        assert graph.overflowed() == []
        largest = max(of.largest for of in graph.ranges.values())
        assert largest > (outlier * BLOCKS) ** 2 > HALF_MAX


@pytest.mark.parametrize(("ops", "outlier"), [(HalfResidual, BEYOND), (AllHalf, SQUARED_BEYOND)])
def test_a_naive_graph_overflows(scene, outlying, tmp_path, ops, outlier):
    actual, graphs = planted(scene, tmp_path, outlier, ops=ops)
    for graph, (what, expected) in zip(graphs, outlying(outlier).items(), strict=True):
        first = graph.overflowed()[0]
        assert graph.ranges[first].dtype == torch.float16
        found = np.nan_to_num(cosines(actual[what], expected))
        report(f"{what}, {ops.__name__}, outlier {outlier * BLOCKS}, overflows at {first}", found)
        assert found.mean() < 0.9


def owners(graph):
    """Names of a graph's tensors -> names that a calibration may know the value by.

    What lies between two products is made of what the last two returned, or is what the next reads.
    """
    products = [
        (index, node.input[1].partition(".weight")[0].split("+"))
        for index, node in enumerate(graph.node)
        if node.op_type == "Gemm"
    ]
    for index, node in enumerate(graph.node):
        before = [modules for place, modules in products if place <= index][-2:]
        after = [modules[0] for place, modules in products if place > index][:1]
        kinds = (OUTPUT, ROTATED, SCORES)
        names = {f"{module}.{kind}" for of in before for module in of for kind in kinds}
        for name in node.output:
            yield name, names | {f"{module}.{INPUT}" for module in after}


@pytest.fixture(scope="module")
def audited(scene, tmp_path_factory):
    """The audit of a calibration on that very scene, its largest magnitudes by name."""
    folder = tmp_path_factory.mktemp("audited") / "calibration"
    collect(scene.plan(), [scene.sample], folder, NoProgress())
    return {of.name: of for of in audit(folder).values}


@pytest.mark.parametrize("part", [VISION, LANGUAGE, HEAD])
def test_the_audit_knows_every_float16_tensor_of_the_graphs(scene, half, audited, part):
    features = TorchGraph(half / VISION)
    language = TorchLanguage(half / LANGUAGE, scene.tables)
    head = TorchGraph(half / HEAD)
    hidden = two_passes(language, scene.placed(features_of(features, scene)))
    read = len(scene.sample.prompt.ids) - 1
    head.run({"hidden": hidden[read:]})
    ranges = {VISION: features, LANGUAGE: language.graph, HEAD: head}[part].ranges
    graph = onnx.load(half / part, load_external_data=False).graph
    tensors = [(name, of) for name, of in owners(graph) if name in ranges]
    narrow = [(name, of) for name, of in tensors if ranges[name].dtype == torch.float16]
    assert len(narrow) > (100 if part != HEAD else 0)
    for name, values in narrow:
        known = [audited[value] for value in values if value in audited]
        assert all(of.type == "float16" for of in known)
        assert ranges[name].largest <= 1.01 * max(of.largest for of in known), (name, values)


def test_what_stays_float32_is_known_too(scene, half, audited):
    graph = TorchGraph(half / VISION)
    features_of(graph, scene)
    wide = max(of.largest for of in graph.ranges.values() if of.dtype == torch.float32)
    squares = [of for of in audited.values() if of.name.endswith("square")]
    vision = max(of.largest for of in squares if of.name.startswith("visual."))
    assert vision == pytest.approx(wide, rel=0.01)
    assert {of.type for of in squares} == {"float32"}


@pytest.mark.slow
def test_at_the_real_geometry_with_random_weights(tmp_path):
    """Random weights have none of the outliers of trained ones: this is rounding alone."""
    write(tmp_path, blocks=2, layers=1)
    for line in compare(tmp_path, "cpu", ("vision", "language")):
        print(line)
        assert line["cosine_least"] >= LEAST_COSINE
        assert line["overflowed"] == []
