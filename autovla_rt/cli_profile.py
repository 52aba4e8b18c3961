"""The command that measures an engine's latency."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from autovla_rt.cli_options import (
    DEFAULT_ENGINE,
    EXACT,
    Acceleration,
    Decode,
    Frames,
    Instruction,
    Mode,
    SceneFile,
    SensorRoot,
    Speed,
    read_decode,
    read_request,
)
from autovla_rt.output_file import require_writable, write_file


def profile(
    frames: Frames = None,
    scene: SceneFile = None,
    sensor_root: SensorRoot = None,
    speed: Speed = None,
    acceleration: Acceleration = None,
    instruction: Instruction = None,
    engine: Annotated[Path, typer.Option(help="Engine bundle.")] = DEFAULT_ENGINE,
    requests: Annotated[int, typer.Option(min=1, help="Requests to measure.")] = 50,
    warm_up: Annotated[int, typer.Option(min=0, help="Requests before them.")] = 5,
    stream: Annotated[
        bool,
        typer.Option("--stream", help="Requests follow each other, with frames that move on."),
    ] = False,
    mode: Annotated[Mode, typer.Option(help="Let the model decide, or force an answer.")] = (
        Mode.auto
    ),
    thinking_token_budget: Annotated[
        int, typer.Option(min=0, help="Most tokens of reasoning.")
    ] = 512,
    decode: Decode = EXACT,
    threads: Annotated[int | None, typer.Option(help="Threads; else every physical core.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    save: Annotated[
        bool, typer.Option("--save", help="Save what deadlines need, beside the bundle.")
    ] = False,
    trace: Annotated[
        Path | None, typer.Option(help="Write a trace for chrome://tracing or Perfetto.")
    ] = None,
) -> None:
    """Measure latency on this machine: stages, forward passes, drafts, memory."""
    refinement = read_decode(decode)
    request = read_request(frames, scene, sensor_root, speed, acceleration, instruction)
    if trace is not None:
        require_writable(trace)
    from autovla_rt.bundle import load_bundle
    from autovla_rt.runtime.device import device_name
    from autovla_rt.runtime.latency import measured_pass_ms
    from autovla_rt.runtime.profile import ProfileSettings, chrome_trace, summary
    from autovla_rt.runtime.profile import profile as measure
    from autovla_rt.runtime.tegrastats import BoardMonitor

    bundle = load_bundle(engine)
    settings = ProfileSettings(
        requests,
        warm_up,
        threads,
        stream,
        mode.value,
        thinking_token_budget,
        refinement,
        measured_pass_ms(bundle, device_name(), threads) if stream else {},
    )
    with BoardMonitor() as board:
        measured = measure(bundle, request, settings)
    report = {**summary(measured, bundle, settings), "board": board.report}
    if trace is not None:
        write_file(trace, json.dumps(chrome_trace(measured)).encode())
    if save:
        from autovla_rt.runtime.latency import save_latency
        from autovla_rt.runtime.latency_measurement import measure_latency

        latency = measure_latency(bundle, request, threads=threads, requests=requests)
        report["latency"] = latency.model_dump()
        typer.echo(f"saved {save_latency(bundle, latency)}", err=True)
    if as_json:
        typer.echo(json.dumps(report, indent=1))
    else:
        from autovla_rt.report import print_profile

        print_profile(report)
