"""The benchmark of the miniature counts what it says it counts."""

import json

import miniature
import numpy as np
import pytest
from squares import square

from autovla_rt import bootstrap

KEYS = ("score", "no_collision", "on_road", "progress", "time_to_collision", "comfort")


def score(value):
    return {**dict.fromkeys(KEYS, value), "red_light": False}


def scene(index, model, other=4.0, complex_=True, mode="slow", **more):
    errors = {name: {"ade": other, "fde": 2 * other} for name in ("fast", "constant velocity")}
    errors |= {"model": {"ade": model, "fde": 2 * model}, "codebook": {"ade": 0.02, "fde": 0.03}}
    if complex_:
        errors |= {name: {"ade": 3 * model, "fde": 9.0} for name in ("blind", "shuffled")}
    scores = dict.fromkeys(("fast", "slow", "expert"), score(1.0)) | {"model": score(0.5)}
    return {
        "seed": index,
        "complex": complex_,
        "errors": errors,
        "scores": scores,
        "forward_passes": 40,
        "mode": mode,
        "thinking_tokens": 30,
        "milliseconds": 10.0,
        **more,
    }


@pytest.fixture(scope="module")
def report():
    scenes = [scene(i, 1.0 + 0.1 * (i % 5), mention={"kind": i % 2, "place": 0}) for i in range(20)]
    scenes += [scene(100 + i, 2.0, complex_=False, mode="fast") for i in range(20)]
    return miniature._report_open(scenes)


def test_means_and_ratios(report):
    assert report["errors"]["complex, model"]["ade"][0] == pytest.approx(1.2)
    assert report["errors"]["all, model"]["ade"][0] == pytest.approx(1.6)
    assert report["ADE ratio, model to constant velocity"][0] == pytest.approx(0.4)
    assert report["ADE ratio, blind to seeing, complex"] == pytest.approx([3.0, 3.0, 3.0])
    assert report["slow share, complex"][0] == 1.0
    assert report["slow share, straightforward"][0] == 0.0
    assert report["names the right kind"][0] == pytest.approx(0.5)
    assert "straightforward, blind" not in report["errors"]


def test_scores_are_summed_up_by_part(report):
    assert report["scores"]["complex, model"]["score"] == [0.5, 0.5, 0.5]
    assert report["scores"]["straightforward, expert"]["red light crossed"][0] == 0.0


def write(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def test_two_runs_are_paired_by_scene(tmp_path):
    before = [scene(i, 1.0 + i % 3, complex_=i % 2 == 0) for i in range(12)]
    after = [
        {**scene(i, 1.5 + i % 3, complex_=i % 2 == 0, mode="fast"), "thinking_tokens": 12}
        for i in (*range(11, -1, -1), 99)
    ]
    compared = miniature.compare(
        write(tmp_path / "before.jsonl", before), write(tmp_path / "after.jsonl", after)
    )
    assert compared["scenes"] == 12
    whole = compared["all"]
    assert whole["ADE"]["difference"] == [0.5, 0.5, 0.5]  # in every pair, however they are ordered
    assert whole["ADE"]["before"][1] < whole["ADE"]["before"][2]
    assert whole["slow share"]["before"][0] == 1.0
    assert whole["slow share"]["after"][0] == 0.0
    assert whole["thinking tokens"]["ratio"] == [0.4, 0.4, 0.4]
    assert whole["model"]["score"]["difference"] == [0.0, 0.0, 0.0]
    assert compared["complex"]["ADE"]["before"][0] == pytest.approx(2.0)


def test_drives_are_paired_too(tmp_path):
    def drive(seed, value):
        return {"seed": seed, "drives": {"model": {**score(value), **THINKING}}}

    before = write(tmp_path / "a.jsonl", [drive(i, 0.5) for i in range(4)])
    after = write(tmp_path / "b.jsonl", [drive(i, 0.5 + 0.1 * i) for i in range(3)])
    compared = miniature.compare(before, after)
    assert compared["drives"] == 3
    assert compared["score"]["difference"][0] == pytest.approx(0.1)


def test_runs_of_other_seeds_cannot_be_paired(tmp_path):
    files = [write(tmp_path / f"{i}.jsonl", [scene(i, 1.0)]) for i in range(2)]
    with pytest.raises(ValueError, match="no seed in common"):
        miniature.compare(*files)


THINKING = {"slow_share": 0.5, "thinking_tokens": 18.0}


def test_an_interval_covers_the_mean_of_most_samples():
    rng = np.random.default_rng(1)
    covered = 0
    for _ in range(20):
        mean, low, high = bootstrap.mean_interval(rng.normal(5.0, 2.0, 60))
        assert low < mean < high
        covered += low < 5.0 < high
    assert covered >= 17


def test_a_ratio_without_bounds_is_left_out():
    assert bootstrap.ratio_interval([2.0, 4.0, 3.0], [1.0, 2.0, 1.5]) == [2.0, 2.0, 2.0]
    assert bootstrap.ratio_interval([2.0] * 4, [1.0, 0.0, 0.0, 0.0]) == []
    assert bootstrap.ratio_interval([2.0] * 4, [0.0] * 4) == []


def test_a_run_goes_on_after_a_line_that_was_cut_short(tmp_path):
    out = tmp_path / "out.jsonl"
    out.write_text('{"seed": 5, "square": 25}\n{"seed": 6, "squ')
    miniature.run(square, range(5, 8), out)
    assert {r["seed"]: r["square"] for r in miniature.read(out)} == {5: 25, 6: 36, 7: 49}


def test_closed_loop_rates_are_means_over_drives():
    drives = [
        {"model": {**score(1.0), "no_collision": i > 0, "red_light": i == 0}} for i in range(4)
    ]
    summed = miniature._report_closed(drives)
    assert summed["drives"] == 4
    assert summed["model"]["no_collision"][0] == 0.75
    assert summed["model"]["red light crossed"][0] == 0.25
    json.dumps(summed)
