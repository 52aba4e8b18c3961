"""`autovla-rt targets`: what it prints, for people and for programs."""

import pytest

from autovla_rt.export.targets import TARGETS


def test_json_has_every_field_of_every_target(invoke):
    told = invoke.json("targets", "--json")
    assert list(told) == list(TARGETS)
    assert told["agx-orin-64"]["peaks"] == {"fp16": 42.5, "int8": 85, "fp8": None, "fp4": None}
    assert told["drive-thor"]["missing"] == "not published"
    assert told["orin-nano-8"]["recipe"]["precision"] == "fp16/int4_awq"
    assert all(of["source"] for of in told.values() if of["sm"])


@pytest.mark.parametrize("columns", [60, 80, 200])
def test_the_tables_fit_a_terminal_and_cut_nothing(invoke, monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    code, out, _ = invoke("targets")
    assert code == 0
    assert "…" not in out
    assert max(map(len, out.splitlines())) <= columns
    compact = "".join(out.replace("│", "").split())
    for name in TARGETS:
        assert columns < 80 or name in compact


def test_a_missing_figure_says_why(invoke, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    _, out, _ = invoke("targets")
    rows = {}
    for line in out.splitlines():
        cells = [cell.strip() for cell in line.strip("│ ").split("│")]
        if len(cells) == 8:
            rows[cells[0]] = cells[1:]
    assert rows["drive-thor"] == ["11.0", "64", "273", "?", "?", "?", "?"]
    assert rows["agx-orin-64"] == ["8.7", "64", "204.8", "42.5", "85", "-", "-"]
    assert rows["rtx-sm89"] == ["8.9", *["varies"] * 5, "-"]
    assert rows["cpu"] == ["-", "varies", "varies", "-", "-", "-", "-"]
