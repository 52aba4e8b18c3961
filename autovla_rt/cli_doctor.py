"""The command that says what this machine can run."""

from __future__ import annotations

import json
from typing import Annotated

import typer


def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say what this machine can run, what its backends lack, and what mends it."""
    from autovla_rt.runtime.doctor import diagnose

    diagnosis = diagnose()
    if as_json:
        typer.echo(json.dumps(diagnosis.as_dict(), indent=1))
        return
    from autovla_rt.report import print_diagnosis

    print_diagnosis(diagnosis)
