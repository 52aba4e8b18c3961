"""The `plain` dialect's graphs compute what those of the `standard` one do, in ONNX Runtime."""

from dataclasses import dataclass, replace

import numpy as np
import onnx
import pytest
from random_calibration import CAMERAS, calibrate
from standard_graphs import StandardLanguage, open_unrewritten, typed

from autovla_rt.config import SPARE_POSITIONS
from autovla_rt.export.calibrate import language_weights, vision_weights
from autovla_rt.export.emit.graphs import emit_language, emit_vision
from autovla_rt.export.graph import plain, standard
from autovla_rt.export.graph.dialect import Formats
from autovla_rt.export.passes.static_mrope import mrope_positions, rotary_tables
from autovla_rt.export.progress import NoProgress
from autovla_rt.export.settings import Settings

CAPACITY = 96
ROWS, COLUMNS = CAMERAS[0].grid[1:]
VISION = f"vision_{ROWS}x{COLUMNS}.onnx"
DIALECTS = {"standard": standard.DIALECT, "plain": plain.DIALECT}
WIDE = "fp16,model.layers.1.mlp=fp32,visual.merger.mlp=fp32"
EXACT = 1e-5
"""Of the largest value: float32 sums in another order (seen: 1e-6)."""
HALF = 2e-3
"""Likewise, rounded to float16 here and there: a few times 2^-11 (seen: 9e-4)."""
FLIPS = 0.06
"""Of the root mean square: a code that falls to another side (see test_standard.py)."""
SHARES = {("fp16", "float32"): EXACT, ("fp16", "float16"): HALF, (WIDE, "float16"): HALF}
SINCE_TENSORRT_10 = (
    "Add And Cast Concat DequantizeLinear Div Erf Gather Gemm Greater GreaterOrEqual Identity Less "
    "MatMul Max Min Mul QuantizeLinear ReduceMean Reshape Sigmoid Slice Softmax Split Sqrt Sub "
    "Transpose Unsqueeze Where"
)
"""onnx-tensorrt's docs/operators.md lists them since 8.4, its changelog INT4 of Q/DQ since 10.0."""


@dataclass(frozen=True)
class Made:
    """Both dialects' graphs of a precision."""

    folders: dict
    geometry: object

    def language(self, dialect):
        path = self.folders[dialect] / "language.onnx"
        positions = mrope_positions(self.geometry, [], CAPACITY + SPARE_POSITIONS)
        tables = rotary_tables(self.geometry, positions)
        in_place = dialect == "standard"
        return StandardLanguage(path, self.geometry.language, tables, CAPACITY, in_place=in_place)

    def features(self, dialect, patches):
        session = open_unrewritten(self.folders[dialect] / VISION)
        return session.run(["features"], {"patches": typed(patches, session)})[0]


@pytest.fixture(scope="module")
def made(model, tmp_path_factory):
    """A function that exports a precision in both dialects."""
    known = {}
    calibration = calibrate(model, tmp_path_factory.mktemp("calibration") / "c")

    def export(precision, floats):
        if (precision, floats) not in known:
            given = calibration if "int8" in precision else None
            chosen = Settings("x", "rtx-sm86", precision, 64, CAPACITY, calibration=given)
            folders = {name: tmp_path_factory.mktemp(name) for name in DIALECTS}
            parts = [of(model, chosen, NoProgress()) for of in (vision_weights, language_weights)]
            (seen, looks), (read, reads) = (
                (weights, replace(formats, floats=floats)) for weights, formats in parts
            )
            for name, dialect in DIALECTS.items():
                folder = folders[name]
                emit_vision(dialect, seen, model.geometry, CAMERAS[:1], looks, folder)
                emit_language(dialect, read, model.geometry, reads, folder)
            known[precision, floats] = Made(folders, model.geometry)
        return known[precision, floats]

    return export


def close(actual, expected, share):
    np.testing.assert_allclose(actual, expected, rtol=0, atol=share * np.abs(expected).max())


def distance(actual, expected):
    return np.sqrt(np.mean((actual - expected) ** 2) / np.mean(expected**2))


def in_passes(text, embeddings):
    """States of all rows, in passes with a rollback between that overwrites what was kept."""
    first = text.extend(embeddings[:20])
    text.extend(embeddings[30:50])
    text.length = 20
    parts = embeddings[20:25], embeddings[25:26], embeddings[26:]
    return np.concatenate([first, *(text.extend(part) for part in parts)])


@pytest.mark.parametrize(("precision", "floats"), SHARES)
def test_states_are_those_of_the_standard_graph(made, embeddings, precision, floats):
    graphs, share = made(precision, floats), SHARES[precision, floats]
    expected = graphs.language("standard").extend(embeddings)
    close(graphs.language("plain").extend(embeddings), expected, share)
    close(in_passes(graphs.language("plain"), embeddings), expected, share)


@pytest.mark.parametrize(("precision", "floats"), SHARES)
def test_features_are_those_of_the_standard_graph(made, patches, precision, floats):
    graphs = made(precision, floats)
    found, expected = (graphs.features(name, patches) for name in ("plain", "standard"))
    close(found, expected, SHARES[precision, floats])


def test_with_codes_they_are_so_but_for_codes_at_a_border(made, embeddings, patches):
    graphs = made("int8/int4", "float32")
    expected = graphs.language("standard").extend(embeddings)
    assert distance(in_passes(graphs.language("plain"), embeddings), expected) < FLIPS
    found, expected = (graphs.features(name, patches) for name in ("plain", "standard"))
    assert distance(found, expected) < FLIPS


def test_the_last_position_is_reached(made, embeddings):
    graphs = made("fp16", "float32")
    texts = [graphs.language(name) for name in ("plain", "standard")]
    full = np.resize(embeddings, (CAPACITY - 1, embeddings.shape[1]))
    for text in texts:
        text.extend(full, 1)
    found, expected = (text.extend(embeddings[:1]) for text in texts)
    close(found, expected, EXACT)


@pytest.mark.parametrize(("precision", "floats"), [*SHARES, ("int8/int4", "float16")])
def test_operators_are_those_of_every_tensorrt_10(made, precision, floats):
    folder = made(precision, floats).folders["plain"]
    for name in ("language.onnx", "text_head.onnx", VISION):
        onnx.checker.check_model(folder / name, full_check=True)
        loaded = onnx.load(folder / name, load_external_data=False)
        assert {node.op_type for node in loaded.graph.node} <= {*SINCE_TENSORRT_10.split()}
        assert [(of.domain, of.version) for of in loaded.opset_import] == [("", 21)]


def test_a_cache_of_no_fixed_size_is_refused(model, tmp_path):
    formats = Formats.uniform("fp16")
    with pytest.raises(ValueError, match="needs the capacity of the cache"):
        emit_language(plain.DIALECT, model.weights(), model.geometry, formats, tmp_path)
