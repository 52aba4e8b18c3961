"""The commands that say what this machine can run, and what engines can be built for."""

from __future__ import annotations

import json
from typing import Annotated

import typer


def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say what this machine can run, what its backends lack, and what mends it."""
    from autovla_rt.doctor import diagnose

    diagnosis = diagnose()
    if as_json:
        typer.echo(json.dumps(diagnosis.as_dict(), indent=1))
        return
    from autovla_rt.device_report import print_diagnosis

    print_diagnosis(diagnosis)


def targets(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, with sources.")] = False,
) -> None:
    """List the devices that engines can be built for: figures, precisions, defaults, backends."""
    from dataclasses import asdict

    from autovla_rt.export.targets import TARGETS

    if as_json:
        typer.echo(json.dumps({name: asdict(of) for name, of in TARGETS.items()}, indent=1))
        return
    from autovla_rt.device_report import print_targets

    print_targets(TARGETS)
