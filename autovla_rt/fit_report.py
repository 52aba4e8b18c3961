"""A search for precisions as files: JSON for programs, CSV for spreadsheets, a page for people."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table

from autovla_rt.fit import Found, Measurement
from autovla_rt.output_file import write_file
from autovla_rt.precision_search import Candidate, Figures, Wish, pareto
from autovla_rt.report import print_tables
from autovla_rt.runtime.evaluation.page import (
    BLUE,
    RED,
    page,
    picture,
    rows_table,
    table_csv,
)
from autovla_rt.runtime.evaluation.told import percent_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Record = dict[str, Any]

REPORT, TABLE, PAGE = "fit.json", "fit.csv", "fit.html"
ALONE = (
    "part",
    "precision",
    "loss, nats",
    "ms",
    "MiB",
    "MB on disk",
    "ADE 5 s, increase",
    "same mode",
    "same action",
)
FRONT = ("precision", "loss, nats", "ms", "MiB", "")
NAMES = ("loss", "ms", "mib")


def report_of(found: Found, wish: Wish) -> Record:
    """Return everything that a search measured and predicted, ready for JSON."""
    return {
        "wish": {"latency_ms": wish.latency, "memory_mib": wish.memory},
        "chosen": {
            "precision": found.chosen.precision,
            "predicted": _named(found.chosen.figures),
            "measured": _named(found.measured.figures),
        },
        "reference": _measured(found.base),
        "alone": [
            {"part": part, "choice": name, **_measured(of)}
            for (part, name), of in found.alone.items()
        ],
        "tried": [_measured(of) for of in found.tried],
        "front": [_predicted(of) for of in pareto(found.candidates, wish)],
        "combinations": len(found.candidates),
    }


def write_report(folder: Path, found: Found, wish: Wish) -> None:
    """Write the three files.

    Raises:
        StorageError: the file system refused.
    """
    report = report_of(found, wish)
    write_file(folder / REPORT, (json.dumps(report, indent=1) + "\n").encode())
    rows = [_predicted(candidate) for candidate in found.candidates]
    write_file(folder / TABLE, table_csv(rows).encode())
    write_file(folder / PAGE, _page(found, wish).encode())


def alone_told(found: Found) -> Iterator[list[str]]:
    """Yield rows of `ALONE`: the reference, then each part by itself."""
    yield ["", "reference", *_figures(found.base.figures), *_driving(found.base)]
    for (part, name), of in found.alone.items():
        yield [part, name, *_figures(of.figures), *_driving(of)]


def front_told(found: Found, wish: Wish) -> Iterator[list[str]]:
    """Yield rows of `FRONT`: what no other combination beats, then what was measured."""
    for candidate in pareto(found.candidates, wish):
        here = "chosen" if candidate.precision == found.chosen.precision else ""
        yield [candidate.precision, *_figures(candidate.figures), f"{here} predicted".strip()]
    for measurement in found.tried:
        here = "chosen, " if measurement is found.measured else ""
        yield [measurement.precision, *_figures(measurement.figures), f"{here}measured"]


def print_fit(found: Found, wish: Wish) -> None:
    """Print what a search measured, and the combinations that none other beats."""
    parts = Table(*ALONE, title="each part alone, the others as in the reference")
    for row in alone_told(found):
        parts.add_row(*row)
    front = Table(*FRONT, title=f"of {len(found.candidates)} combinations, not beaten by another")
    for row in front_told(found, wish):
        front.add_row(*row)
    print_tables(parts, front)


def _figures(figures: Figures) -> list[str]:
    return [f"{figures.loss:.5f}", f"{figures.ms:.1f}", f"{figures.mib:.1f}"]


def _driving(measurement: Measurement) -> list[str]:
    against = measurement.summary["against"]
    share = against.get("increase", {}).get("ade_5s", {}).get("share")
    return [
        f"{measurement.bundle_mb:.1f}",
        "" if share is None else percent_text(share),
        percent_text(against["same_mode"]),
        f"{100 * against['same_action'][0]:.1f} %",
    ]


def _named(figures: Figures) -> dict[str, float]:
    return dict(zip(NAMES, (round(value, 6) for value in figures), strict=True))


def _measured(measurement: Measurement) -> Record:
    against = measurement.summary["against"]
    return {
        "precision": measurement.precision,
        **_named(measurement.figures),
        "bundle_mb": round(measurement.bundle_mb, 1),
        "increase": against.get("increase"),
        "same_mode": against["same_mode"],
        "same_action": against["same_action"],
    }


def _predicted(candidate: Candidate) -> Record:
    return {"precision": candidate.precision, **_named(candidate.figures), **candidate.parts}


def _page(found: Found, wish: Wish) -> str:
    title = f"{found.chosen.precision}: chosen of {len(found.candidates)} combinations"
    url = picture(lambda axes: _draw(axes, found, wish), 4.5)
    return page(
        title,
        [
            f"<h1>{escape(title)}</h1>",
            f'<p><img alt="Loss by latency of every combination" src="{url}"></p>',
            "<h2>What no other combination beats</h2>" + rows_table(FRONT, front_told(found, wish)),
            "<h2>Each part alone</h2>" + rows_table(ALONE, alone_told(found)),
        ],
    )


def _draw(axes: Axes, found: Found, wish: Wish) -> None:
    """Draw the combinations by latency and loss, their front, and what was measured."""
    _points(axes, found.candidates, s=6, color="#c3ccd5", label="predicted")
    front = pareto(found.candidates, wish)
    _points(axes, front, s=16, color=BLUE, label="not beaten by another one")
    measured = [of.figures for of in (found.base, *found.alone.values(), *found.tried)]
    axes.scatter(
        [of.ms for of in measured],
        [of.loss for of in measured],
        s=24,
        facecolors="none",
        edgecolors="#1f2933",
        label="measured",
    )
    chosen = found.measured.figures
    axes.scatter([chosen.ms], [chosen.loss], s=90, marker="*", color=RED, label="chosen, measured")
    if wish.latency is not None:
        axes.axvline(wish.latency, color=RED, linewidth=0.8, linestyle="--")
    axes.set(xlabel="a request, ms", ylabel="KL to the reference, nats")
    smallest = min((of.figures.loss for of in front if of.figures.loss > 0), default=1e-4)
    axes.set_yscale("symlog", linthresh=smallest)
    axes.legend(fontsize=8)


def _points(axes: Axes, candidates: Sequence[Candidate], **style: Any) -> None:
    figures = [candidate.figures for candidate in candidates]
    axes.scatter([of.ms for of in figures], [of.loss for of in figures], **style)
