"""The search for precisions: which engine it takes, and when it gives up."""

import json

import pytest
from demo_engine import REPO

from autovla_rt import fit
from autovla_rt.bundle import load_bundle
from autovla_rt.errors import FitError
from autovla_rt.export.formats import read_choice
from autovla_rt.export.settings import Settings
from autovla_rt.fit import Measurement, loss_of, search
from autovla_rt.precision_search import Figures, Wish
from autovla_rt.runtime.evaluation.gate import read_limits

LOSS = {"fp32": 0.0, "int8_wo": 0.001, "int8": 0.01, "int4": 0.1}
MS = {"fp32": 10.0, "int8_wo": 8.0, "int8": 4.0, "int4": 3.0}
MIB = {"fp32": 40.0, "int8_wo": 10.0, "int8": 10.0, "int4": 5.0}
LAYERS = (
    "visual.blocks.3.attn.qkv",
    "visual.merger.mlp.0",
    "model.layers.1.self_attn.q_proj",
    "model.layers.1.mlp.up_proj",
    "text_head",
)


class Sums:
    """Measures engines whose parts add up, but for some that are worse than their parts say."""

    def __init__(self, off=None):
        self.off = off or {}
        self.asked = []

    def measure(self, precision):
        self.asked.append(precision)
        choice = read_choice(precision)
        chosen = [choice.of(layer, 8) for layer in LAYERS]
        loss, ms, mib = (sum(table[name] for name in chosen) for table in (LOSS, MS, MIB))
        figures = Figures(loss, ms + self.off.get("ms", 0) * (len(self.asked) > 14), mib)
        summary = {
            "against": {
                "scenes": 100,
                "increase": {"ade_5s": {"share": [loss, loss, loss]}},
                "same_mode": [1.0, 1.0, 1.0],
                "same_action": [1.0, 1.0, 1.0],
            }
        }
        return Measurement(precision, figures, 1.0, summary)


def found(wish, gate="ade_increase=1", **off):
    bench = Sums(off)
    return search(bench, Settings("engine"), wish, read_limits(gate)), bench


def test_the_closest_within_a_latency_is_taken():
    result, _ = found(Wish(latency=38.0))
    assert result.measured.figures.ms <= 38
    assert result.measured.figures == result.chosen.figures
    within = [of for of in result.candidates if of.figures.ms <= 38]
    assert result.measured.figures.loss == min(of.figures.loss for of in within)


def test_the_closest_within_a_memory_is_taken():
    result, _ = found(Wish(memory=50.0))
    assert result.measured.precision == "int8_wo/int8_wo"


def test_without_a_wish_the_fastest_that_passes_is_taken():
    result, _ = found(Wish(), "ade_increase=0.12")
    passing = [of.figures.ms for of in result.candidates if of.figures.loss <= 0.12]
    assert result.measured.figures.loss <= 0.12
    assert result.measured.figures.ms <= 1.2 * min(passing)
    assert len(result.tried) > 1


def test_each_part_was_measured_alone_before():
    _, bench = found(Wish(latency=38.0))
    assert bench.asked[0] == "fp32/fp32"
    assert len(bench.asked) == len(set(bench.asked)) == 1 + 2 + 2 + 3 + 3 + 3 + 1


def test_what_is_slower_than_its_parts_makes_all_predictions_slower():
    result, _ = found(Wish(latency=38.0), ms=3.0)
    assert result.measured.figures.ms <= 38
    assert len(result.tried) == 2
    assert result.chosen.figures.ms == pytest.approx(result.measured.figures.ms)


@pytest.mark.parametrize(
    ("wish", "gate", "words"),
    [
        (Wish(latency=1.0), "ade_increase=1", "latency at most 1 ms"),
        (Wish(memory=2.0), "ade_increase=1", "smallest at 35 MiB"),
        (Wish(memory=60.0), "ade_increase=0", r"ade_increase 0.005 \(limit 0\)"),
    ],
)
def test_a_wish_that_nothing_grants_says_what_there_is(wish, gate, words):
    with pytest.raises(FitError, match=words):
        found(wish, gate)


def test_a_loss_is_the_sum_of_what_is_there():
    records = [
        {"action_kl": [0.1, 0.3], "decision_kl": 0.5},
        {"action_kl": [0.0, 0.0], "decision_kl": 0.1, "text_kl": 2.0},
    ]
    assert loss_of(records) == pytest.approx(0.1 + 0.3 + 2.0)


@pytest.fixture
def few_choices(monkeypatch):
    """The attention alone has a choice, so that two engines are enough."""
    options = {
        "vision": ["int8"],
        "vision_ends": ["int8"],
        "attention": ["fp32", "int8"],
        "mlp": ["int8"],
        "text_head": ["int8"],
        "kv": ["auto"],
    }
    monkeypatch.setattr(fit, "choices", lambda *_, **__: options)


@pytest.fixture(scope="module")
def given(demo, tmp_path_factory):
    folder = tmp_path_factory.mktemp("fit")
    (folder / "scenes").mkdir()
    source = REPO / "calib_data" / "demo"
    scene = json.loads((source / "scene.json").read_text())
    (folder / "scenes" / "demo.json").write_text(json.dumps(scene))
    return ["--scenes", folder / "scenes", "--sensor-root", source]


def test_a_build_chooses_its_precisions_and_keeps_the_report(
    demo, invoke, tmp_path, given, few_choices
):
    out = tmp_path / "engine"
    options = [*demo.build_options, "--frame-size", "392x224", *given, "--out", out]
    code, printed, said = invoke("build", *options, "--max-ade-increase", "9", "--gate", "scenes=1")
    assert code == 0, said
    assert "not beaten by another" in " ".join(printed.split())
    manifest = load_bundle(out).manifest
    report = json.loads((out / "fit.json").read_text())
    assert str(manifest.precision) == report["chosen"]["precision"]
    assert {"fit.json", "fit.csv", "fit.html"} <= set(manifest.files)
    assert (report["combinations"], len(report["alone"])) == (2, 1)
    assert report["chosen"]["measured"]["ms"] > 0
    assert report["chosen"]["measured"]["mib"] > 50
    assert 1 < report["alone"][0]["bundle_mb"] < 100
    assert "<img" in (out / "fit.html").read_text()
    assert len((out / "fit.csv").read_text().splitlines()) == 3

    (tmp_path / "engine.fit" / "lines").mkdir()  # of a run that was killed at another engine
    (tmp_path / "engine.fit" / "lines" / "scenes.jsonl").write_text('{"engine": "another"}\n')
    lines = (tmp_path / "engine.fit" / "measurements.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "engine.fit" / "measurements.jsonl").write_text("".join(lines[:-1]) + lines[-1][:9])
    again = ["--max-ade-increase", "9", "--gate", "scenes=1"]
    code, _, said = invoke("build", *options, *again)
    assert code == 0, said
    manifest = load_bundle(out).manifest

    before = (tmp_path / "engine.fit" / "measurements.jsonl").read_bytes()
    code, _, said = invoke("build", *options, "--fit", "latency=1e-3", "--gate", "scenes=1")
    assert code == 16
    assert "the fastest is predicted at" in said
    assert (tmp_path / "engine.fit" / "measurements.jsonl").read_bytes() == before
    assert load_bundle(out).manifest == manifest

    other = [*options[:-1], tmp_path / "other"]
    (tmp_path / "other.fit").mkdir()
    (tmp_path / "other.fit" / "measurements.jsonl").write_text('{"checkpoint": "another"}\n')
    said = invoke.refused(3, "build", *other, "--fit", "latency=50", "--gate", "scenes=1")
    assert "expected measurements of this checkpoint, calibration, target, scenes" in said

    one = [*options, "--threads", "1", "--fit", "latency=50", "--gate", "scenes=1"]
    assert "threads and machine" in invoke.refused(3, "build", *one)


def test_too_few_scenes_are_refused_before_any_work(demo, invoke, tmp_path, given):
    words = [*demo.build_options, *given, "--fit", "latency=50", "--out", tmp_path / "e"]
    assert "expected at least 50 scenes, got 1" in invoke.refused(3, "build", *words)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--fit", "latency=50"], "--fit and --max-ade-increase go with --scenes"),
        (["--threads", "1"], "--threads goes with --fit or --max-ade-increase"),
        (["--max-ade-increase", "0.1"], "--fit and --max-ade-increase go with --scenes"),
        (["GIVEN", "--fit", "latency=5", "--precision", "int8"], "choose the precision themselves"),
        (["GIVEN", "--max-ade-increase", "-1"], "greater than or equal to 0"),
    ],
)
def test_options_that_do_not_go_together(demo, invoke, tmp_path, given, options, words):
    listed = [item for of in options for item in (given if of == "GIVEN" else [of])]
    code, _, said = invoke("build", *demo.build_options, *listed, "--out", tmp_path / "e")
    assert code == 2
    assert words in " ".join(said.replace("│", " ").split())
    assert not (tmp_path / "e").exists()
