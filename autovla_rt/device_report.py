"""What people read of devices: the table of targets, what this machine can run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from autovla_rt.cuda_driver import Driver, NoDriver
from autovla_rt.report import pairs, print_tables, printable

if TYPE_CHECKING:
    from autovla_rt.doctor import Diagnosis
    from autovla_rt.export.targets import Target
    from autovla_rt.runtime.jetson import Board

PEAKS = {"fp16": "fp16", "int8": "int8", "fp8": "fp8", "fp4": "nvfp4"}
"""Peak -> the precision that it is of."""

MISSING = {"not published": "?", "varies": "varies"}


def print_targets(targets: Mapping[str, Target]) -> None:
    """Print what each target has, what it takes and what it is built in."""
    figures = Table("target", "SM", "GiB", "GB/s", *PEAKS, title="figures (dense, GPU alone)")
    defaults = Table("target", "device", "system", "default", "vision, language", title="defaults")
    legal: dict[tuple[str, ...], list[str]] = {}
    for name, of in targets.items():
        figures.add_row(name, *_figures(of))
        backends = dict.fromkeys((of.backend, of.language_backend))
        defaults.add_row(
            name,
            of.description,
            " ".join(filter(None, (of.system, of.mode))),
            of.recipe.precision,
            ", ".join(backends),
        )
        legal.setdefault((*of.precisions, *(f"kv={kv}" for kv in of.kv)), []).append(name)
    for column in figures.columns[1:]:
        column.justify = "right"
    for column in (*figures.columns, *defaults.columns):
        column.overflow = "fold"
    precisions = pairs("legal precisions")
    for formats, names in legal.items():
        precisions.add_row(", ".join(names), ", ".join(formats))
    print_tables(figures, defaults, precisions)
    Console().print(
        "fp16 to fp4: 10^12 operations a second. -: the device has none. ?: not published. "
        "varies: with the card. Sources: --json.",
        highlight=False,
    )


def _figures(target: Target) -> list[str]:
    """Tell SM, memory, bandwidth and peaks; a GPU's figure that is missing says why."""
    unknown = MISSING[target.missing]
    sm = f"{target.sm / 10:.1f}" if target.sm else "-"
    sizes = (target.memory_gib, target.bandwidth)
    peaks = (
        _number(getattr(target.peaks, peak), unknown)
        if target.sm is not None and precision in target.precisions
        else "-"
        for peak, precision in PEAKS.items()
    )
    return [sm, *(_number(size, unknown) for size in sizes), *peaks]


def _number(value: float | None, unknown: str) -> str:
    return unknown if value is None else f"{value:g}"


def print_diagnosis(diagnosis: Diagnosis) -> None:
    """Print what a machine can run."""
    machine = diagnosis.machine
    table = pairs(printable(diagnosis.device))
    memory = "unknown" if machine.memory is None else f"{machine.memory / 2**30:.1f} GiB"
    for key, value in {
        "architecture": machine.architecture,
        "cores of this process": str(machine.cores),
        "free memory": memory,
        "of the CPU": ", ".join(machine.features) or "none that matters",
        **_driver(diagnosis.driver),
        **_board(diagnosis.board),
    }.items():
        table.add_row(key, Text(printable(value)))
    backends = pairs("backends")
    for finding in diagnosis.findings:
        name = f"{finding.backend} ({finding.targets})"
        works = "works" if finding.works else "does not work"
        mend = f"\nmend it: {finding.fix}" if finding.fix else ""
        backends.add_row(name, Text(printable(f"{works}; {finding.found}{mend}")))
    print_tables(table, backends)
    for advice in diagnosis.advice:
        Console().print(Text(printable(advice)))


def _driver(driver: Driver | NoDriver) -> dict[str, str]:
    if isinstance(driver, NoDriver):
        return {"NVIDIA's driver": f"none: {driver.reason}\nmend it: {driver.fix}"}
    gpus = {
        f"GPU {index}": f"{of.name}, SM {of.sm / 10:.1f}, {of.memory / 2**30:.1f} GiB"
        + (", shared with the CPU" if of.is_integrated else "")
        for index, of in enumerate(driver.devices)
    }
    return {"NVIDIA's driver": f"works, CUDA {driver.cuda} at most", **gpus}


def _board(board: Board | None) -> dict[str, str]:
    if board is None:
        return {}
    return {
        "Jetson Linux": board.l4t,
        "JetPack": board.jetpack or "not installed",
        "power mode": board.power_mode,
        "GPU clock": board.clocks,
    }
