"""An evaluation as files: JSON for programs, CSV for spreadsheets, a page for people."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from autovla_rt.output_file import write_file
from autovla_rt.runtime.evaluation.gate import Check, judge
from autovla_rt.runtime.evaluation.page import (
    BLUE,
    RED,
    flat,
    page,
    picture,
    rows_table,
    table_csv,
    values_table,
)
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
    write_file(folder / TABLE, table_csv([dict(flat(record)) for record in records]).encode())
    write_file(folder / PAGE, _page(report, records).encode())


def _worst(records: Sequence[Record], count: int = 5) -> list[Record]:
    """Return the scenes whose plans differ most, or lie farthest from the truth."""
    key = "apart" if any("apart" in record for record in records) else "truth"
    told = [record for record in records if "ade_5s" in record.get(key, {})]
    told.sort(key=lambda record: -record[key]["ade_5s"])
    return [{"token": r["token"], f"{key}_ade_5s": r[key]["ade_5s"]} for r in told[:count]]


def _page(report: Record, records: Sequence[Record]) -> str:
    parts = [f"<h1>{escape(report['protocol']['engine']['name'])}: evaluation</h1>"]
    if "gate" in report:
        gate = report["gate"]
        parts.append(f"<h2>Gate: {verdict_told(gate)}</h2>" + rows_table(CHECKS, checks_told(gate)))
    parts += _figures(report["summary"])
    parts += [f'<p><img alt="{escape(name)}" src="{url}"></p>' for name, url in _plots(records)]
    if report["worst"]:
        rows = {row["token"]: list(row.values())[1] for row in report["worst"]}
        (name,) = [key for key in report["worst"][0] if key != "token"]
        parts.append(f"<h2>Farthest scenes ({escape(name)}, metres)</h2>" + values_table(rows))
    parts.append("<h2>Protocol</h2>" + values_table(dict(flat(report["protocol"]))))
    every = values_table(dict(flat(report["summary"])))
    parts.append(f"<details><summary>Every figure</summary>{every}</details>")
    title = f"{report['protocol']['engine']['name']}: evaluation"
    return page(title, parts)


def _figures(summary: Record) -> Iterator[str]:
    if rows := list(displacements_told(summary)):
        yield f"<h2>Against the truth, {summary['scenes']} scenes</h2>"
        yield rows_table(DISPLACEMENTS, rows)
    if "against" in summary:
        yield "<h2>Against the reference</h2>" + values_table(agreement_told(summary["against"]))


def _plots(records: Sequence[Record]) -> Iterator[tuple[str, str]]:
    """Yield names and data URLs of the pictures that the records allow."""
    driven = [record for record in records if "ade_5s" in record.get("truth", {})]
    compared = [record for record in records if "reference" in record]
    if compared:
        yield "Actions by step", picture(lambda axes: _draw_steps(axes, compared))
        apart = [record["apart"]["ade_5s"] for record in compared if "ade_5s" in record["apart"]]
        if apart:
            yield (
                "Plans apart",
                picture(
                    lambda axes: _draw_share(axes, apart, "ADE between both plans over 5 s, m")
                ),
            )
    both = [record for record in driven if "truth" in record.get("reference", {})]
    if both:
        yield "ADE against truth", picture(lambda axes: _draw_pairs(axes, both))
    elif driven:
        errors = [record["truth"]["ade_5s"] for record in driven]
        yield (
            "ADE against truth",
            picture(lambda axes: _draw_share(axes, errors, "ADE against the truth over 5 s, m")),
        )


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
