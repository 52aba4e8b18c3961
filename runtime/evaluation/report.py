"""An evaluation as files: JSON for programs, CSV for spreadsheets, a page for people."""

from __future__ import annotations

import base64
import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from autovla_rt.bootstrap import interval_text
from autovla_rt.output_file import write_file
from autovla_rt.runtime.evaluation.gate import Check

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Record = dict[str, Any]

REPORT, TABLE, PAGE = "evaluation.json", "evaluation.csv", "evaluation.html"
BLUE, RED = "#0072b2", "#d55e00"
STYLE = (
    "body{font:15px system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;"
    "color:#1f2933}table{border-collapse:collapse;margin:1rem 0}td,th{padding:.25rem .75rem;"
    "border-bottom:1px solid #e3e7eb;text-align:left}td+td{font-variant-numeric:tabular-nums}"
    ".no{color:#b42318;font-weight:600}.yes{color:#067647}img{max-width:100%}"
)


def report_of(
    protocol: Record, summary: Record, checks: Sequence[Check], records: Sequence[Record]
) -> Record:
    """Return everything that is told; a gate stands there where it was asked for."""
    report: Record = {"protocol": protocol, "summary": summary}
    if checks:
        report["gate"] = {
            "passed": all(check.passed for check in checks),
            "checks": [check.as_dict() for check in checks],
        }
    report["worst"] = _worst(records)
    return report


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
        parts += _gate(report["gate"])
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
    """Yield the main figures as tables; intervals are 95 %, over scenes."""
    against = summary.get("against", {})
    rows = []
    for key, of in summary.get("truth", {}).items():
        theirs = against.get("truth", {}).get(key)
        share = against.get("increase", {}).get(key, {}).get("share")
        cells = [
            key.replace("_", " ").upper().replace("S", "s"),
            interval_text(of["mean"]),
            f"{of['p95']:.3g}",
            f"{of['worst']:.3g}",
            interval_text(theirs["mean"]) if theirs else "",
            interval_text([100 * value for value in share]) if share else "",
        ]
        rows.append(f"<tr>{''.join(f'<td>{cell}' for cell in cells)}</tr>")
    if rows:
        names = "metres", "engine", "95th percentile", "worst", "reference", "increase, %"
        head = f"<tr>{''.join(f'<th>{name}' for name in names)}</tr>"
        yield f"<h2>Against the truth, {summary['scenes']} scenes</h2>"
        yield f"<table>{head}{''.join(rows)}</table>"
    if against:
        yield "<h2>Against the reference</h2>" + _table(_agreement(against))


def _agreement(against: Record) -> dict[str, str]:
    def percent(values: Sequence[float]) -> str:
        return interval_text([100 * value for value in values], " %")

    told = {
        "ADE between both plans over 5 s, metres": interval_text(
            against["apart"]["ade_5s"]["mean"]
        ),
        "same mode": percent(against["same_mode"]),
        "same plan": percent(against["same_plan"]),
        "same action, given the reference's answer": percent(against["same_action"]),
        "KL of actions, nats": interval_text(against["action_kl"]["mean"]),
    }
    if "decision_kl" in against:
        told["KL of the choice of mode, nats"] = interval_text(against["decision_kl"]["mean"])
    if "reasoning" in against:
        reasoning = against["reasoning"]
        told[f"same reasoning, of {reasoning['scenes']} that both reason"] = percent(
            reasoning["same"]
        )
        told["reasoning that is the same from its begin"] = percent(reasoning["same_until_share"])
    for part, of in against["cosine"].items():
        told[f"cosine, {part}"] = f"{of['mean']:.6f}, worst scene {of['worst']:.6f}"
    return told


def _gate(gate: Record) -> list[str]:
    rows = []
    for check in gate["checks"]:
        sign = "≤" if check["at_most"] else "≥"
        measured = "no figure" if check["measured"] is None else f"{check['measured']:.4g}"
        verdict = '<td class="yes">yes' if check["passed"] else '<td class="no">no'
        rows.append(
            f"<tr><td>{escape(check['meaning'])}<td>{measured}<td>{sign} {check['limit']:g}"
            f"{verdict}</tr>"
        )
    said = "passed" if gate["passed"] else "not passed"
    head = "<tr><th>what<th>measured<th>limit<th>within</tr>"
    return [f"<h2>Gate: {said}</h2><table>{head}{''.join(rows)}</table>"]


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
