"""The command `eval`."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import typer

from autovla_rt.cli_options import DEFAULT_ENGINE, require_library


def evaluate(
    scenes: Annotated[
        Path, typer.Option(help="Folder of AutoVLA's preprocessed scenes, a JSON each.")
    ],
    sensor_root: Annotated[Path, typer.Option(help="Root of the scenes' paths.")],
    out: Annotated[
        Path, typer.Option(help="Folder to write; an interrupted run goes on.", show_default=False)
    ],
    engine: Annotated[Path, typer.Option(help="Engine bundle.")] = DEFAULT_ENGINE,
    against: Annotated[
        Path | None, typer.Option(help="Engine bundle to compare with, such as an fp32 one.")
    ] = None,
    gate: Annotated[
        str | None,
        typer.Option(help="Limits NAME=NUMBER,... over the defaults; needs --against."),
    ] = None,
    thinking_token_budget: Annotated[
        int, typer.Option(min=0, help="Most tokens of reasoning.")
    ] = 512,
    threads: Annotated[int | None, typer.Option(help="Of each engine; else every core.")] = None,
    processes: Annotated[int, typer.Option(min=1, help="That evaluate side by side.")] = 1,
    ray: Annotated[
        str | None,
        typer.Option(help='Ray cluster instead: "auto", HOST:PORT, or "local" for this machine.'),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Judge an engine's plans on recorded scenes, by the truth and by another engine's.

    Without --gate the default limits are told, and the exit code is 0 whatever is measured; with
    it, also with an empty one, the exit code is 15 where a limit is not kept.
    """
    require_library("matplotlib", "eval")
    if ray is not None:
        require_library("ray", "--ray")
    from autovla_rt.errors import GateError
    from autovla_rt.runtime.evaluation.gate import read_limits
    from autovla_rt.runtime.evaluation.report import PAGE, conclude
    from autovla_rt.runtime.evaluation.run import Evaluation, scene_files
    from autovla_rt.runtime.evaluation.run import evaluate as run

    if gate is not None and against is None:
        raise typer.BadParameter("--gate compares two engines: add --against ENGINE")
    limits = read_limits(gate)
    evaluation = Evaluation(engine, against, sensor_root, threads, thinking_token_budget)
    files = scene_files(scenes)
    start = time.monotonic()
    records: list[dict[str, Any]] = []
    with typer.progressbar(
        run(evaluation, files, out, processes=processes, ray=ray),
        length=len(files),
        label="scenes",
        file=typer.get_text_stream("stderr"),
    ) as lines:
        records.extend(lines)
    report, checks = conclude(evaluation, scenes, records, limits, out)
    if as_json:
        import json

        typer.echo(json.dumps(report, indent=1))
    else:
        from autovla_rt.report import print_evaluation

        print_evaluation(report)
    typer.echo(f"{len(records)} scenes in {time.monotonic() - start:.0f} s: {out / PAGE}", err=True)
    if gate is not None and not report["gate"]["passed"]:
        broken = [check for check in checks if not check.passed]
        listed = "; ".join(f"{c.name} {c.measured:.4g}, limit {c.limit:g}" for c in broken)
        raise GateError(
            f"{engine}: expected plans within the gate of {against}, got {listed}.\n"
            f"See {out / PAGE}. Calibrate on more scenes, choose a finer precision, or set --gate."
        )
