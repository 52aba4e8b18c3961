"""The race runs on the miniature, says who is missing, and sums up what was measured."""

import json
import sys
from pathlib import Path

import pytest
import race
from race import CONTESTANTS, OFFICIAL, VISION_OF, Contestant, collect, markdown, run, summary


def measured():
    table, facts = {}, {}
    for vision, decode in ((4.0, 3.0), (5.0, 3.5), (4.5, 9.0)):
        request = {"vision": vision, "prefill": 10.0, "decode": decode}
        end = {"load_s": 8.0, "peak_rss_gib": 3.5}
        collect(table, facts, VISION_OF, [request, end])
        slower = {**request, "prefill": 40.0, "vision": 10.0}
        collect(table, facts, OFFICIAL, [slower, end])
        collect(table, facts, "llama.cpp, Q4_0", [{"prefill": 12.0, "decode": 5.0}, end])
        ours = {"way": "cold", "vision": 4.0, "prefill": 5.0, "decode": 1.0, "passes": 10}
        collect(table, facts, "ours-openvino-int4", [ours, end])
    return table, facts


def test_requests_are_sums_within_a_round_and_medians_over_rounds():
    rows = summary(measured()[0])
    assert rows[VISION_OF]["request"] == 18.5  # of 17.0, 18.5 and 23.5
    assert (rows[VISION_OF]["least"], rows[VISION_OF]["most"]) == (17.0, 23.5)
    assert rows["ours-openvino-int4, cold"]["passes"] == 10
    assert rows["llama.cpp, Q4_0"]["lent vision"]
    assert rows["llama.cpp, Q4_0"]["request"] == 21.5  # 4.5 lent, 12 and 5
    assert not rows[VISION_OF]["lent vision"]


def test_a_peer_that_nobody_can_lend_a_tower_is_left_out():
    table = {"llama.cpp, Q4_0": {"prefill": [1.0], "decode": [1.0]}}
    assert summary(table) == {}


def test_ratios_are_to_the_best_peer_and_to_transformers():
    table, facts = measured()
    text = markdown(summary(table), {"onnxruntime-genai, int4": "skipped: x is missing"}, facts)
    (ours,) = (line for line in text.splitlines() if line.startswith("| ours"))
    assert "10.00 (10.00-10.00)" in ours
    assert "| 1.85x | 5.35x | 8.0 | 3.5 |" in ours
    assert "onnxruntime-genai, int4: skipped: x is missing" in text


def test_who_is_not_there_is_skipped_by_name_and_reason(tmp_path):
    here = Contestant(Path("worker.py"), "files")
    missing = tmp_path / "python"
    assert "python is missing" in run(tmp_path, "x", here, missing, 1)
    missing.touch()
    assert "files is missing" in run(tmp_path, "x", here, missing, 1)


def test_a_contestant_that_fails_is_told_with_its_last_words(tmp_path):
    worker = tmp_path / "worker.py"
    worker.write_text("raise SystemExit('no luck')")
    contestant = Contestant(worker, "worker.py")
    assert run(tmp_path, "x", contestant, Path(sys.executable), 1) == "failed: no luck"


@pytest.mark.slow
def test_the_quick_race_names_who_does_not_run(tmp_path, monkeypatch, capsys):
    out = tmp_path / "report"
    words = ["race.py", tmp_path / "work", out, "--quick", "--threads", 1]
    monkeypatch.setattr("sys.argv", [*map(str, words)])
    race.main()
    report = json.loads(out.with_suffix(".json").read_text())
    ways = ("cold", "cold, refined", "stream", "stream, refined")
    ours = {f"{name}, {way}" for name in race.ENGINES for way in ways}
    assert report["rows"].keys() == {OFFICIAL} | ours
    official = report["rows"][OFFICIAL]
    assert all(official[stage] > 0 for stage in race.STAGES)
    for name in ours:
        row = report["rows"][name]
        assert row["request"] > 0
        assert row["passes"] == 4 if "refined" in name else row["passes"] <= 11
    assert report["skipped"].keys() == CONTESTANTS.keys() - race.ENGINES.keys() - {OFFICIAL}
    assert report["ledger"]["official"]["passes"] == 46
    assert report["int8 GEMM, GOP/s"][0] > 0
    assert out.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    said = capsys.readouterr().out
    assert "ours-openvino-int4, stream" in said
    assert "| passes of the language model | 46 | 10 | 7 | 4 |" in said
