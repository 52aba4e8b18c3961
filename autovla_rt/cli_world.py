"""Commands of the miniature's world: scenes to files, and drives with a compiled engine."""

from __future__ import annotations

import enum
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from autovla_rt.cli_options import DEFAULT_ENGINE, EXACT, Decode, Mode, read_decode
from autovla_rt.errors import InputError, LayoutError
from autovla_rt.output_file import make_folder

if TYPE_CHECKING:
    from autovla_rt.demo.drivers import Driver
    from autovla_rt.runtime.draft import Refinement
    from autovla_rt.runtime.planner import Planner

LONGEST_DRIVE = 20.0
"""Seconds; a fast car would reach the end of the world's roads soon after."""


class DriverName(enum.StrEnum):
    """Who plans."""

    model = "model"
    expert = "expert"
    constant_velocity = "constant-velocity"


class Event(enum.StrEnum):
    """What a scene is about."""

    free = "free"
    lead = "lead"
    cut_in = "cut_in"
    pedestrian = "pedestrian"
    light = "light"
    construction = "construction"
    stopped = "stopped"


def scenes(
    out: Annotated[Path, typer.Argument(help="Folder to write; existing scenes stay.")],
    count: Annotated[int, typer.Option(min=1, help="Scenes.")] = 16,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the first; the others follow.")] = 0,
    event: Annotated[
        Event | None, typer.Option(help="Only scenes about this; else all kinds.")
    ] = None,
) -> None:
    """Draw scenes of the miniature's world, in AutoVLA's layout (scene JSON and JPEG)."""
    from rich.console import Console
    from rich.progress import track

    from autovla_rt.demo.dataset import SCENES, SENSORS, write_scenes

    name = None if event is None else event.value
    seeds = range(seed, seed + count)
    console = Console(stderr=True)
    for number in track(seeds, "scenes", console=console, disable=not console.is_terminal):
        write_scenes(out, [number], name)
    typer.echo(f"{count} scenes: {out / SCENES}, sensor root {out / SENSORS}", err=True)


def drive(
    engine: Annotated[Path, typer.Option(help="Engine bundle.")] = DEFAULT_ENGINE,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the world.")] = 0,
    seconds: Annotated[
        float, typer.Option(min=1, max=LONGEST_DRIVE, help="Length of the drive.")
    ] = 20.0,
    replan_every: Annotated[
        float, typer.Option(min=0.1, max=5, help="Seconds between plans, multiple of 0.1.")
    ] = 0.5,
    latency_ms: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=5000,
            help="Apply each plan so much later; else as long as planning took.",
        ),
    ] = None,
    mode: Annotated[Mode, typer.Option(help="Let the model decide, or force an answer.")] = (
        Mode.auto
    ),
    decode: Decode = EXACT,
    driver: Annotated[DriverName, typer.Option(help="Who plans.")] = DriverName.model,
    out: Annotated[Path, typer.Option(help="Folder for drive.json and the pictures.")] = Path(
        "build/drive"
    ),
    film: Annotated[bool, typer.Option("--film", help="Write drive.webp, a film, too.")] = False,
    threads: Annotated[int | None, typer.Option(help="Threads; else every physical core.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Drive through the miniature's world, replanning from the cameras; score and pictures."""
    from autovla_rt.demo.drive import Drive, DriveSettings, draw_drive_world
    from autovla_rt.demo.recording import Recorder

    settings = DriveSettings(seconds, _multiple_of_a_step(replan_every), latency_ms)
    chosen, description = _driver(driver, engine, mode, read_decode(decode), threads)
    make_folder(out)
    run = Drive(draw_drive_world(seed), chosen, settings)
    recorder = Recorder(settings, filmed=film)
    for tick in run:
        recorder.add(tick)
    record = recorder.record(seed, driver.value, description, run.score())
    recorder.write(out, record)
    if as_json:
        typer.echo(json.dumps(record, indent=1))
    else:
        from autovla_rt.report import print_drive

        print_drive(record, out)


def require_world_layout(planner: Planner) -> None:
    """Refuse an engine that was compiled for other cameras or another plan than the world's.

    Raises:
        LayoutError: the engine's grids, or number or spacing of poses differ.
    """
    from autovla_rt.demo.drivers import FRAME_HEIGHT, FRAME_WIDTH
    from autovla_rt.demo.scenes import NUM_POSES
    from autovla_rt.demo.tracking import DT
    from autovla_rt.kernels.resize import video_grid

    manifest = planner.bundle.manifest
    grid = video_grid(FRAME_WIDTH, FRAME_HEIGHT, manifest.preprocessing, manifest.geometry.vision)
    size = f"{FRAME_WIDTH}x{FRAME_HEIGHT}"
    wrong = [camera for camera in manifest.cameras if camera.grid != grid]
    if wrong:
        listed = ", ".join(f"{camera.name} {camera.grid}" for camera in wrong)
        raise LayoutError(
            f"{planner.bundle.folder}: expected an engine for the world's cameras, three of {size} "
            f"pixels (grid {grid}), got one for {listed}.\n"
            f"Build it with --frame-size {size}."
        )
    actions = manifest.actions
    if (actions.num_poses, actions.dt) != (NUM_POSES, DT):
        raise LayoutError(
            f"{planner.bundle.folder}: expected plans of {NUM_POSES} poses, {DT} s apart, got "
            f"{actions.num_poses}, {actions.dt} s apart.\nDrive with an engine for such plans."
        )


def _multiple_of_a_step(seconds: float) -> float:
    if abs(seconds * 10 - round(seconds * 10)) > 1e-6:
        raise InputError(
            f"--replan-every {seconds}: expected a multiple of 0.1 s, the step of the world.\n"
            f"Give {round(seconds * 10) / 10:.1f}."
        )
    return round(seconds * 10) / 10


def _driver(
    name: DriverName,
    engine: Path,
    mode: Mode,
    refinement: Refinement | None,
    threads: int | None,
) -> tuple[Driver, dict[str, object] | None]:
    from autovla_rt.demo.drivers import ConstantVelocityDriver, ExpertDriver, ModelDriver

    if name is DriverName.expert:
        return ExpertDriver(), None
    if name is DriverName.constant_velocity:
        return ConstantVelocityDriver(), None
    from autovla_rt.runtime.device import device_name
    from autovla_rt.runtime.latency import measured_pass_ms
    from autovla_rt.runtime.plan import describe_engine
    from autovla_rt.runtime.planner import Planner

    planner = Planner.load(engine, threads=threads)
    require_world_layout(planner)
    bundle = planner.bundle
    driver = ModelDriver(
        planner,
        mode=mode.value,
        refinement=refinement,
        pass_ms=measured_pass_ms(planner.bundle, device_name(), threads),
    )
    return driver, describe_engine(bundle.manifest, bundle.identity)
