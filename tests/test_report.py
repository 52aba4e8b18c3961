"""The human tables: complete, narrow enough, harmless."""

from __future__ import annotations

import dataclasses

import pytest
from demo_engine import FRAMES, make_demo

from autovla_rt import report
from autovla_rt.bundle import Bundle, load_bundle
from autovla_rt.runtime.planner import Planner
from autovla_rt.runtime.scene import read_frames_dir


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    return make_demo(tmp_path_factory.getbasetemp()).engine


@pytest.fixture(scope="module")
def plan(engine):
    return Planner.load(engine).plan(read_frames_dir(FRAMES))


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


@pytest.mark.parametrize("columns", [60, 80, 200])
def test_no_value_is_cut_at_any_width(engine, plan, capsys, monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    report.print_bundle(load_bundle(engine))
    report.print_plan(plan)
    out = capsys.readouterr().out
    assert "…" not in out
    assert max(map(len, out.splitlines())) <= columns
    compact = "".join(out.replace("│", "").split())
    assert load_bundle(engine).identity in compact
    assert "".join(map(str, plan.action_tokens)) in compact


def test_a_slow_plan_shows_its_reasoning_as_text(plan, capsys):
    slow = dataclasses.replace(plan, mode="slow", reasoning="[bold]a[/bold]\nb", thinking_tokens=7)
    report.print_plan(slow)
    out = capsys.readouterr().out
    assert "[bold]a[/bold]" in out  # no markup of the terminal library
    assert "thinking tokens" in out
    assert "│ 7 " in out


def test_control_characters_do_not_reach_the_terminal(engine, plan, capsys):
    evil = "\x1b[2J\x07\u202e\x9b"
    bundle = load_bundle(engine)
    manifest = bundle.manifest.model_copy(update={"notes": (evil,), "name": evil})
    report.print_bundle(Bundle(bundle.folder, manifest, bundle.identity))
    engine_facts = {**plan.engine, "name": evil, "notes": [evil]}
    report.print_plan(dataclasses.replace(plan, reasoning=evil, engine=engine_facts))
    assert not set(evil[0] + evil[-3:]) & set(capsys.readouterr().out)


def test_a_plan_without_the_decision(plan, capsys):
    report.print_plan(dataclasses.replace(plan, mode="direct", p_slow=None))
    assert "nan" not in capsys.readouterr().out


def test_the_stages_add_up(plan, capsys):
    report.print_plan(plan)
    rows = [line.strip("│ ").split("│") for line in capsys.readouterr().out.splitlines()]
    stages = {row[0].strip(): row[1].strip() for row in rows if len(row) == 2}
    assert float(stages["sum"]) == pytest.approx(sum(plan.stages_ms.values()), abs=0.01)
    assert set(plan.stages_ms) < set(stages)


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (3 << 20, "3 MiB"), (5 << 40, "5120 GiB")],
)
def test_sizes(count, text):
    assert report._size(count) == text
