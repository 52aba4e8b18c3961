"""The command that says how near a calibration's values came to float16's largest number."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer


def audit(
    calibration: Annotated[Path, typer.Argument(help="Folder of `calibrate`.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, of all values.")] = False,
) -> None:
    """Say how near float16 values of NVIDIA's graphs came to 65,504 on the calibration scenes.

    Lists every value above a quarter of it, those that stay float32 with the reason, and the
    largest of the others. Where one needs float32, PART=fp32 behind --precision gives it.
    """
    from autovla_rt.export.calibration.audit import audit as audit_calibration

    found = audit_calibration(calibration)
    if as_json:
        typer.echo(json.dumps(found.as_dict(), indent=1))
        return
    from autovla_rt.audit_report import print_audit

    print_audit(found)
