"""Self-contained pages: tables, and pictures inside them."""

from __future__ import annotations

import base64
import csv
import io
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BLUE, RED = "#0072b2", "#d55e00"
STYLE = (
    "body{font:15px system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;"
    "color:#1f2933}table{border-collapse:collapse;margin:1rem 0}td,th{padding:.25rem .75rem;"
    "border-bottom:1px solid #e3e7eb;text-align:left}td+td{font-variant-numeric:tabular-nums}"
    "img{max-width:100%}"
)


def page(title: str, parts: Iterable[str]) -> str:
    """Return a page of parts that are HTML already."""
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{escape(title)}</title>'
        f"<style>{STYLE}</style><body>{''.join(parts)}</body></html>\n"
    )


def rows_table(names: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table with a line of names above its rows."""
    head = "".join(f"<th>{escape(name)}" for name in names)
    body = "".join(f"<tr>{''.join(f'<td>{escape(cell)}' for cell in row)}</tr>" for row in rows)
    return f"<table><tr>{head}</tr>{body}</table>"


def values_table(values: Mapping[str, Any]) -> str:
    """Return a table of names and values."""
    cells = []
    for name, value in values.items():
        shown = f"{value:.6g}" if isinstance(value, float) else str(value)
        cells.append(f"<tr><td>{escape(str(name))}<td>{escape(shown)}</tr>")
    return f"<table>{''.join(cells)}</table>"


def picture(draw: Callable[[Axes], None], height: float = 3.2) -> str:
    """Return a data URL of what `draw` draws, 8 by `height` inches."""
    figure = Figure(figsize=(8, height), layout="constrained")
    draw(figure.add_subplot())
    stream = io.BytesIO()
    FigureCanvasAgg(figure).print_png(stream)
    return f"data:image/png;base64,{base64.b64encode(stream.getvalue()).decode()}"


def table_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return rows as CSV under the names that any of them has."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def flat(record: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    """Yield single values of nested records, those of lists by number."""
    for key, value in record.items():
        name = f"{above}{key}"
        if isinstance(value, Mapping):
            yield from flat(value, f"{name}.")
        elif isinstance(value, list):
            yield from ((f"{name}.{index}", of) for index, of in enumerate(value, 1))
        else:
            yield name, value
