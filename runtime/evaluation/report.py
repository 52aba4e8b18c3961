"""An evaluation as files: JSON for programs, CSV for spreadsheets, a page for people."""

from __future__ import annotations

import base64
import csv
import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from autovla_rt.output_file import write_file
from autovla_rt.runtime.evaluation.gate import Check, judge
from autovla_rt.runtime.evaluation.run import Evaluation, protocol_of
from autovla_rt.runtime.evaluation.summary import summarise
from autovla_rt.runtime.evaluation.told import (
    CHECKS,
    DISPLACEMENTS,
    agreement_told,
    checks_told,
    displacements_told,
    verdict_told,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Record = dict[str, Any]

REPORT, TABLE, PAGE = "evaluation.json", "evaluation.csv", "evaluation.html"
BLUE, RED = "#0072b2", "#d55e00"
STYLE = (
    "body{font:15px system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;"
    "color:#1f2933}table{border-collapse:collapse;margin:1rem 0}td,th{padding:.25rem .75rem;"
    "border-bottom:1px solid #e3e7eb;text-align:left}td+td{font-variant-numeric:tabular-nums}"
    "img{max-width:100%}"
)


def conclude(
    evaluation: Evaluation,
    scenes: Path,
    records: list[Record],
    limits: Mapping[str, float],
    folder: Path,
) -> tuple[Record, list[Check]]:
    """Sum up, judge where there is a reference, and write the report's files.

    Args:
        evaluation: What was evaluated.
        scenes: Folder of the scenes.
        records: Their lines, in any order.
        limits: By name (`read_limits`).
        folder: Of the files.

    Returns:
        The report, and what was held against the limits.

    Raises:
        StorageError: the file system refused.
    """
    records = sorted(records, key=lambda record: str(record["token"]))
    summary = summarise(records)
    checks = [] if evaluation.against is None else judge(summary, limits)
    protocol = {**protocol_of(evaluation), "scenes": str(scenes)}
    report: Record = {"protocol": protocol, "summary": summary}
    if checks:
        report["gate"] = {
            "passed": all(check.passed for check in checks),
            "checks": [check.as_dict() for check in checks],
        }
    report["worst"] = _worst(records)
    write_report(folder, report, records)
    return report, checks


def write_report(folder: Path, report: Record, records: Sequence[Record]) -> None:
    """Write the three files.

    Raises:
        StorageError: the file system refused.
    """
    write_file(folder / REPORT, (json.dumps(report, indent=1) + "\n").encode())
    write_file(folder / TABLE, _csv(records).encode())
    write_file(folder / PAGE, _page(report, records).encode())


def _worst(records: Sequence[Record], count: int = 5) -> list[Record]:
    """Return the scenes whose plans differ most, or lie farthest from the truth."""
    key = "apart" if any("apart" in record for record in records) else "truth"
    told = [record for record in records if "ade_5s" in record.get(key, {})]
    told.sort(key=lambda record: -record[key]["ade_5s"])
    return [{"token": r["token"], f"{key}_ade_5s": r[key]["ade_5s"]} for r in told[:count]]


def _csv(records: Sequence[Record]) -> str:
    rows = [dict(_flat(record)) for record in records]
    names = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _flat(record: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    """Yield single values, those of steps by number."""
    for key, value in record.items():
        name = f"{above}{key}"
        if isinstance(value, Mapping):
            yield from _flat(value, f"{name}.")
        elif isinstance(value, list):
            yield from ((f"{name}.{index}", of) for index, of in enumerate(value, 1))
        else:
            yield name, value


def _page(report: Record, records: Sequence[Record]) -> str:
    parts = [f"<h1>{escape(report['protocol']['engine']['name'])}: evaluation</h1>"]
    if "gate" in report:
        gate = report["gate"]
        parts.append(f"<h2>Gate: {verdict_told(gate)}</h2>" + _rows(CHECKS, checks_told(gate)))
    parts += _figures(report["summary"])
    parts += [f'<p><img alt="{escape(name)}" src="{url}"></p>' for name, url in _plots(records)]
    if report["worst"]:
        rows = {row["token"]: list(row.values())[1] for row in report["worst"]}
        (name,) = [key for key in report["worst"][0] if key != "token"]
        parts.append(f"<h2>Farthest scenes ({escape(name)}, metres)</h2>" + _table(rows))
    parts.append("<h2>Protocol</h2>" + _table(dict(_flat(report["protocol"]))))
    every = _table(dict(_flat(report["summary"])))
    parts.append(f"<details><summary>Every figure</summary>{every}</details>")
    title = escape(f"{report['protocol']['engine']['name']}: evaluation")
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title>'
        f"<style>{STYLE}</style><body>{''.join(parts)}</body></html>\n"
    )


def _figures(summary: Record) -> Iterator[str]:
    if rows := list(displacements_told(summary)):
        yield f"<h2>Against the truth, {summary['scenes']} scenes</h2>"
        yield _rows(DISPLACEMENTS, rows)
    if "against" in summary:
        yield "<h2>Against the reference</h2>" + _table(agreement_told(summary["against"]))


def _rows(names: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    head = "".join(f"<th>{escape(name)}" for name in names)
    body = "".join(f"<tr>{''.join(f'<td>{escape(cell)}' for cell in row)}</tr>" for row in rows)
    return f"<table><tr>{head}</tr>{body}</table>"


def _table(values: Mapping[str, Any]) -> str:
    cells = []
    for name, value in values.items():
        shown = f"{value:.6g}" if isinstance(value, float) else str(value)
        cells.append(f"<tr><td>{escape(str(name))}<td>{escape(shown)}</tr>")
    return f"<table>{''.join(cells)}</table>"


def _plots(records: Sequence[Record]) -> Iterator[tuple[str, str]]:
    """Yield names and data URLs of the pictures that the records allow."""
    driven = [record for record in records if "ade_5s" in record.get("truth", {})]
    compared = [record for record in records if "reference" in record]
    if compared:
        yield "Actions by step", _picture(lambda axes: _draw_steps(axes, compared))
        apart = [record["apart"]["ade_5s"] for record in compared if "ade_5s" in record["apart"]]
        if apart:
            yield (
                "Plans apart",
                _picture(
                    lambda axes: _draw_share(axes, apart, "ADE between both plans over 5 s, m")
                ),
            )
    both = [record for record in driven if "truth" in record.get("reference", {})]
    if both:
        yield "ADE against truth", _picture(lambda axes: _draw_pairs(axes, both))
    elif driven:
        errors = [record["truth"]["ade_5s"] for record in driven]
        yield (
            "ADE against truth",
            _picture(lambda axes: _draw_share(axes, errors, "ADE against the truth over 5 s, m")),
        )


def _picture(draw: Any) -> str:
    figure = Figure(figsize=(8, 3.2), layout="constrained")
    draw(figure.add_subplot())
    stream = io.BytesIO()
    FigureCanvasAgg(figure).print_png(stream)
    return f"data:image/png;base64,{base64.b64encode(stream.getvalue()).decode()}"


def _draw_steps(axes: Axes, records: Sequence[Record]) -> None:
    same = np.array([record["same_action"] for record in records], float).mean(axis=0)
    kl = np.array([record["action_kl"] for record in records]).mean(axis=0)
    steps = np.arange(1, len(same) + 1)
    axes.bar(steps, same, color=BLUE)
    axes.set(xlabel="step of the plan", ylabel="same action (bars)", ylim=(0, 1), xticks=steps)
    beside = axes.twinx()
    beside.plot(steps, kl, color=RED, marker="o")
    beside.set(ylabel="KL, nats (line)", ylim=(0, None))


def _draw_share(axes: Axes, values: Sequence[float], label: str) -> None:
    ordered = np.sort(values)
    axes.step(ordered, np.arange(1, len(ordered) + 1) / len(ordered), where="post", color=BLUE)
    axes.set(xlabel=label, ylabel="share of scenes", ylim=(0, 1.02))


def _draw_pairs(axes: Axes, records: Sequence[Record]) -> None:
    theirs = [record["reference"]["truth"]["ade_5s"] for record in records]
    ours = [record["truth"]["ade_5s"] for record in records]
    most = max(*theirs, *ours) * 1.05
    axes.plot([0, most], [0, most], color="#66727f", linewidth=0.8)
    axes.scatter(theirs, ours, s=8, color=BLUE)
    axes.set(xlabel="reference's ADE against the truth over 5 s, m", ylabel="this engine's, m")
