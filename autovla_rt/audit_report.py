"""What people read of a float16 range audit."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.table import Table

from autovla_rt.report import print_tables

if TYPE_CHECKING:
    from autovla_rt.export.calibration.audit import Audit, AuditedValue

FEWEST, FEWEST_WIDE = 10, 3
"""Values of each type listed where fewer are large."""

HEADINGS = ("value", "what it is", "largest", "of 65,504")


def print_audit(audit: Audit) -> None:
    """Print the float16 values that are large, or the largest, and what stays float32."""
    by_size = sorted(audit.values, key=lambda value: -value.largest)
    half = [value for value in by_size if value.type == "float16"]
    large = [value for value in half if value.is_large]
    title = f"float16: {len(large)} of {len(half)} values above a quarter, {audit.scenes} scenes"
    narrow = _table(title, HEADINGS, large + half[len(large) : FEWEST])
    wide = [value for value in by_size if value.type == "float32"]
    beyond = [value for value in wide if value.is_large]
    title = f"float32: {len(beyond)} of {len(wide)} values above a quarter"
    listed = beyond + wide[len(beyond) : FEWEST_WIDE]
    print_tables(narrow, _table(title, (*HEADINGS, "why float32"), listed))


def _table(title: str, headings: tuple[str, ...], values: list[AuditedValue]) -> Table:
    table = Table(*headings, title=title)
    table.columns[0].no_wrap = True
    for column in table.columns[2:4]:
        column.justify = "right"
    for value in values:
        cells = value.name, value.what, f"{value.largest:,.1f}", f"{value.share:.2%}", value.reason
        table.add_row(*cells[: len(headings)])
    return table
