"""What people read: tables of bundles and plans, progress of an export."""

from __future__ import annotations

import math
import unicodedata
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    TaskID,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from autovla_rt.bundle import Bundle, CalibrationUsed, Quality
from autovla_rt.config import TENSORRT_SINCE
from autovla_rt.versions import dotted

if TYPE_CHECKING:
    from autovla_rt.runtime.plan import Plan


class ExportProgress:
    """Stages of an export on stderr: bars with the time left on a terminal, else a line each."""

    def __init__(self) -> None:
        self._console = Console(stderr=True)
        self._bars = Progress(
            TextColumn("{task.description:16}"),
            BarColumn(),
            TaskProgressColumn(),
            TimeRemainingColumn(elapsed_when_finished=True),
            console=self._console,
            disable=not self._console.is_terminal,
        )
        self._task: TaskID | None = None

    def __enter__(self) -> ExportProgress:
        self._bars.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if error is None:
            self._finish()
        self._bars.stop()

    def stage(self, name: str, elements: int | None) -> None:
        """Begin a stage that reads `elements` weights; None where that is not known."""
        self._finish()
        self._task = self._bars.add_task(name, total=elements)
        if not self._console.is_terminal:
            self._console.print(name, highlight=False)

    def advance(self, elements: int) -> None:
        """Count weights read in the current stage."""
        if self._task is not None:
            self._bars.advance(self._task, elements)

    def _finish(self) -> None:
        if self._task is not None:
            done = self._bars.tasks[self._task].total or 1
            self._bars.update(self._task, total=done, completed=done)


def print_bundle(bundle: Bundle) -> None:
    """Print what a bundle is and holds."""
    manifest = bundle.manifest
    vision, language = manifest.geometry.vision, manifest.geometry.language
    table = pairs(f"engine {manifest.name}")
    precision, used = manifest.precision, manifest.calibration
    for key, value in {
        "sha256": bundle.identity,
        "target": f"{manifest.target} ({manifest.backend})",
        "graphs": _graphs(manifest.dialect),
        "precision": str(precision),
        "calibration": _calibration(used),
        "gate": _verdict(manifest.quality),
        "built by": f"autovla-rt {manifest.autovla_rt_version}, format {manifest.format_version}",
        "with": ", ".join(f"{k} {v}" for k, v in manifest.library_versions.items()),
        "checkpoint": manifest.checkpoint.path,
        "checkpoint sha256": manifest.checkpoint.sha256,
        "vision": f"{vision.depth} blocks of {vision.hidden_size}, {vision.num_heads} heads",
        "language": (
            f"{language.num_hidden_layers} layers of {language.hidden_size}, "
            f"{language.num_attention_heads} heads, {language.num_key_value_heads} KV heads, "
            f"vocabulary {language.vocab_size}"
        ),
        "cameras": ", ".join(f"{c.name} {'x'.join(map(str, c.grid))}" for c in manifest.cameras),
        "answers": "with chain of thought" if manifest.use_cot else "direct",
        "actions": (
            f"{manifest.actions.num_poses} of {manifest.actions.num_actions}, "
            f"{manifest.actions.dt} s apart, from id {manifest.actions.action_start_id}"
        ),
        "KV capacity": f"{manifest.kv_capacity} positions",
        **{f"note {i}": note for i, note in enumerate(manifest.notes, 1)},
    }.items():
        table.add_row(key, _plain(value))
    files = Table("file", "size", "sha256", title="files")
    files.columns[1].justify = "right"
    for name, record in manifest.files.items():
        files.add_row(_plain(name), _size(record.size), record.sha256[:16])
    files.add_row("sum", _size(sum(record.size for record in manifest.files.values())))
    print_tables(table, files)


def _graphs(dialect: str) -> str:
    if dialect not in TENSORRT_SINCE:
        return dialect
    return f"{dialect}, for TensorRT {dotted(TENSORRT_SINCE[dialect])} or newer"


def _calibration(used: CalibrationUsed | None) -> str:
    if used is None:
        return "none, rounded to nearest"
    told = f"{used.precision}, on {used.scenes} scenes (sha256 {used.scenes_sha256[:16]})"
    return told if used.modelopt is None else f"{told}, scales by ModelOpt {used.modelopt}"


def _verdict(quality: Quality | None) -> str:
    if quality is None:
        return "not judged"
    said = "passed" if quality.passed else "not passed"
    reference = quality.against_precision
    return (
        f"{said} on {quality.scenes} scenes, against vision {reference.vision}, language "
        f"{reference.language} (sha256 {quality.against[:16]})"
    )


def print_plan(plan: Plan) -> None:
    """Print a plan: answer, trajectory and where the time went."""
    table = pairs("plan")
    engine = plan.engine
    precision = engine["precision"]
    for key, value in {
        "engine": (
            f"{engine['name']}, {engine['target']} ({engine['backend']}), "
            f"vision {precision['vision']}, language {precision['language']}"
        ),
        "mode": plan.mode,
        "p(slow)": "-" if plan.p_slow is None else f"{plan.p_slow:.3f}",
        "status": f"{plan.status}, finish reason {plan.finish_reason}",
        "action tokens": " ".join(map(str, plan.action_tokens)),
        "forward passes": str(plan.forward_passes),
        "thinking tokens": str(plan.thinking_tokens),
        "reasoning": plan.reasoning or "-",
        **{f"note {i}": note for i, note in enumerate(engine["notes"], 1)},
    }.items():
        table.add_row(key, _plain(value))
    poses = Table("t (s)", "x (m)", "y (m)", "heading (°)", title="trajectory, ego frame")
    for index, (x, y, heading) in enumerate(plan.trajectory, 1):
        time = index * engine["dt"]
        poses.add_row(f"{time:.1f}", f"{x:.2f}", f"{y:.2f}", f"{math.degrees(heading):.1f}")
    stages = Table("stage", "ms", title="stages")
    for name, milliseconds in plan.stages_ms.items():
        stages.add_row(name, f"{milliseconds:.2f}")
    stages.add_row("sum", f"{sum(plan.stages_ms.values()):.2f}")
    for numeric in (poses, stages):
        for column in numeric.columns[numeric is stages :]:
            column.justify = "right"
    print_tables(table, poses, stages)


def _board(board: dict[str, Any] | None) -> dict[str, str]:
    """Say what tegrastats saw while the requests ran."""
    if board is None:
        return {"power, clocks": "not measured: there is no tegrastats here"}
    if "error" in board:
        return {"power, clocks": f"not measured: {board['error']}"}
    units = {"values": "", "celsius": " °C", "milliwatts": " mW"}
    ranges = {
        f"{name}{unit}": f"{low:.0f} to {high:.0f}, mean {mean:.0f}"
        for part, unit in units.items()
        for name, (low, mean, high) in board[part].items()
    }
    return {"power mode": board["power_mode"], **ranges}


def print_profile(report: dict[str, Any]) -> None:
    """Print latencies, and what they were measured with."""
    engine, device, protocol = report["engine"], report["device"], report["protocol"]
    acceptance, passes = report["acceptance"], report["forward_passes"]
    refinement = protocol["refinement"]
    table = pairs("profile")
    for key, value in {
        "engine": f"{engine['name']}, {engine['sha256'][:16]}, {engine['backend']}",
        "device": f"{device['name']}, {device['cores']} cores, {device['system']}",
        "protocol": (
            f"{protocol['requests']} requests after {protocol['warm_up']}, "
            f"{'streamed' if protocol['streamed'] else 'each by itself'}, "
            f"{protocol['threads'] or 'all'} threads, mode {protocol['mode']}, "
            f"{'exact' if refinement is None else 'refined'}, drafts "
            f"{'as long as pays' if protocol['pass_ms'] else 'as long as can be'}"
        ),
        "modes": ", ".join(f"{mode} {count}" for mode, count in report["modes"].items()),
        "forward passes": ", ".join(f"{n}: {c}" for n, c in passes["distribution"].items()),
        "prefill": f"{report['prefill_tokens_per_s']['p50']:.0f} tokens/s",
        "generation": f"{report['generation_tokens_per_s']['p50']:.0f} tokens/s",
        "drafts": (
            f"{report['accepted_tokens']} of {report['drafted_tokens']} tokens accepted"
            + ("" if acceptance is None else f" ({acceptance:.0%})")
        ),
        "tokens reused": f"{report['reused_tokens']['p50']:.0f} of the prompt's",
        "frame pairs reused": f"{report['reused_frame_pairs']['p50']:.0f} of a request's",
        "outside the engine": f"{report['outside_engine_share']['p50']:.1%} of the time",
        "peak memory": _size(report["peak_rss_bytes"]),
        **_board(report["board"]),
    }.items():
        table.add_row(key, _plain(value))
    stages = Table("stage, ms", "p50", "p90", "p99", "max", "jitter", title="latency")
    rows = {**report["stages_ms"], "request": report["request_ms"]}
    for name, of in rows.items():
        stages.add_row(name, *(f"{of[key]:.2f}" for key in ("p50", "p90", "p99", "max", "jitter")))
    calls = Table("rows of a pass", "n", "p50", "p90", "p99", "max", title="passes, ms")
    for count, of in report["passes_ms"].items():
        numbers = (f"{of[key]:.2f}" for key in ("p50", "p90", "p99", "max"))
        calls.add_row(str(count), str(of["n"]), *numbers)
    for numeric in (stages, calls):
        for column in numeric.columns[1:]:
            column.justify = "right"
    print_tables(table, stages, calls)


def print_evaluation(report: dict[str, Any]) -> None:
    """Print an evaluation's main figures, with 95 % intervals, and its gate."""
    from autovla_rt.runtime.evaluation.told import (
        CHECKS,
        DISPLACEMENTS,
        agreement_told,
        checks_told,
        displacements_told,
        verdict_told,
    )

    summary = report["summary"]
    table = Table(*DISPLACEMENTS, title=f"{summary['scenes']} scenes")
    for row in displacements_told(summary):
        table.add_row(*row)
    tables = [table]
    if "against" in summary:
        agreement = pairs("against the reference")
        for name, text in agreement_told(summary["against"]).items():
            agreement.add_row(name, text)
        tables.append(agreement)
    if "gate" in report:
        checks = Table(*CHECKS, title=f"gate: {verdict_told(report['gate'])}")
        for row in checks_told(report["gate"]):
            checks.add_row(*row)
        tables.append(checks)
    print_tables(*tables)


def print_drive(record: dict[str, Any], out: Path) -> None:
    """Print how a drive went and where its pictures are."""
    score = record["score"]
    table = pairs(f"drive {record['seed']}")
    slow, hit = record["slow_share"], score["collided_with"]
    for key, value in {
        "driver": record["driver"],
        "score": f"{score['score']:.3f}",
        "collision": "none" if hit is None else f"with a {hit}",
        "on the road": "always" if score["on_road"] else "not always",
        "red light": "crossed" if score["red_light"] else "kept",
        "progress": f"{score['progress']:.2f} of the expert's, {score['metres']:.0f} m",
        "time to collision": f"{score['time_to_collision']:.2f} of the time above 0.9 s",
        "comfort": f"{score['comfort']:.2f} of the time",
        "plans": f"{record['plans']}"
        + ("" if slow is None else f", {100 * slow:.0f} % of them with reasoning"),
        "planning": f"{record['planning_ms_median']:.0f} ms median, "
        f"{record['planning_ms_max']:.0f} ms at most",
        "written to": str(out),
    }.items():
        table.add_row(key, printable(value))
    print_tables(table)


def printable(text: str) -> str:
    """Text without control characters: a bundle or a model's reasoning could steer a terminal."""
    return "".join(
        c if c == "\n" or not unicodedata.category(c).startswith("C") else "\ufffd" for c in text
    )


def _plain(text: str) -> Text:
    return Text(printable(text))


def _size(count: int) -> str:
    """Bytes in the largest binary unit that leaves at least 1."""
    value = float(count)
    for unit in ("B", "KiB", "MiB"):
        if value < 1024:
            return f"{value:.4g} {unit}"
        value /= 1024
    return f"{value:.4g} GiB"


def pairs(title: str) -> Table:
    """Begin a table of names and what they are."""
    table = Table(title=_plain(title), show_header=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    return table


def print_tables(*tables: Table) -> None:
    """Print tables, one below the other."""
    console = Console()
    for table in tables:
        console.print(table)
