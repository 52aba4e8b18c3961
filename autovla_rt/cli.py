"""The command line: it parses, calls export or runtime, and prints.

Heavy imports stand inside the commands, so that --help answers at once. Results go to stdout, logs
and progress to stderr.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from autovla_rt import (
    __version__,
    cli_audit,
    cli_build,
    cli_compile,
    cli_doctor,
    cli_evaluate,
    cli_profile,
    cli_world,
)
from autovla_rt.cli_options import (
    DEFAULT_ENGINE,
    EXACT,
    EXTRAS,
    Acceleration,
    Decode,
    Frames,
    Instruction,
    Mode,
    SceneFile,
    SensorRoot,
    Speed,
    missing_library,
    read_decode,
    read_request,
    require_library,
)
from autovla_rt.errors import AutovlaError, DependencyError
from autovla_rt.output_file import require_writable, write_file

if TYPE_CHECKING:
    from autovla_rt.export.codebook import CodebookInfo
    from autovla_rt.runtime.deadline import Deadline
    from autovla_rt.runtime.planner import Planner
    from autovla_rt.runtime.scene import Request

app = typer.Typer(
    name="autovla-rt",
    help="Compile AutoVLA driving models for edge devices, and run them there.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    epilog=(
        "Exit codes: 0 done, 1 internal error, 2 wrong usage, 3 input, 4 checkpoint, 5 recipe, "
        "6 codebook, 7 bundle, 8 target, 9 capacity, 10 storage, 11 missing library, "
        "12 camera layout, 13 too little memory, 14 calibration, 15 gate not passed, "
        "16 nothing fits, 17 refused by the GPU."
    ),
)
codebook_app = typer.Typer(help="Import, build and show action codebooks.", no_args_is_help=True)
app.add_typer(codebook_app, name="codebook")
app.command()(cli_build.export)
app.command()(cli_build.calibrate)
app.command()(cli_audit.audit)
app.command()(cli_build.build)
app.command("compile")(cli_compile.compile_)
app.command("eval")(cli_evaluate.evaluate)
app.command()(cli_profile.profile)
app.command()(cli_doctor.doctor)
app.command()(cli_doctor.targets)
app.command()(cli_world.drive)
app.command()(cli_world.scenes)

DEFAULT_ALTERNATIVES, MAX_ALTERNATIVES = 8, 64
WARM_UP_TOKENS = 2


Engine = Annotated[Path, typer.Option(help="Engine bundle.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"autovla-rt {__version__}")
        raise typer.Exit


@app.callback()
def _global_options(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    """Hold the options of no command."""


@app.command()
def recipe(
    source: Annotated[Path, typer.Argument(help="Training checkout, or a .toml recipe.")],
) -> None:
    """Print the prompt and answer format that a training checkout gives, as TOML."""
    from autovla_rt.export.recipe import read_recipe, render_recipe

    typer.echo(render_recipe(read_recipe(source)), nl=False)


@app.command()
def inspect(
    engine: Annotated[Path, typer.Argument(help="Engine bundle.")] = DEFAULT_ENGINE,
    as_json: Json = False,
    verify: Annotated[bool, typer.Option("--verify", help="Check every sha256 again.")] = False,
) -> None:
    """Show what an engine bundle holds, after verifying it."""
    from autovla_rt.bundle import load_bundle

    bundle = load_bundle(engine, verify=verify)
    if as_json:
        manifest = bundle.manifest.model_dump(mode="json")
        _print_json({"sha256": bundle.identity, **manifest})
    else:
        from autovla_rt.report import print_bundle

        print_bundle(bundle)


@app.command()
def plan(
    frames: Frames = None,
    scene: SceneFile = None,
    sensor_root: SensorRoot = None,
    speed: Speed = None,
    acceleration: Acceleration = None,
    instruction: Instruction = None,
    engine: Engine = DEFAULT_ENGINE,
    mode: Annotated[Mode, typer.Option(help="Let the model decide, or force an answer.")] = (
        Mode.auto
    ),
    thinking_token_budget: Annotated[
        int, typer.Option(min=0, help="Most tokens of reasoning.")
    ] = 512,
    temperature: Annotated[float, typer.Option(help="Sample at this temperature; 0 is greedy.")] = (
        0.0
    ),
    top_k: Annotated[int, typer.Option(help="Sample among the k likeliest; 0 is off.")] = 0,
    top_p: Annotated[float, typer.Option(help="Sample within this probability mass.")] = 1.0,
    repetition_penalty: Annotated[float, typer.Option(help="As the official decoding: 1.05.")] = (
        1.0
    ),
    seed: Annotated[int, typer.Option(help="Seed of sampling.")] = 0,
    decode: Decode = EXACT,
    deadline_ms: Annotated[
        float | None,
        typer.Option(help="Plan within so many ms from loaded frames (needs profile --save)."),
    ] = None,
    threads: Annotated[int | None, typer.Option(help="Threads; else every physical core.")] = None,
    verify: Annotated[bool, typer.Option("--verify", help="Check every sha256 again.")] = False,
    as_json: Json = False,
    out: Annotated[Path | None, typer.Option(help="Write the plan's JSON here.")] = None,
    plot: Annotated[
        Path | None, typer.Option(help="Draw frames, plan and answer (PNG, 1400x900).")
    ] = None,
    alternatives: Annotated[
        int | None,
        typer.Option(
            min=0,
            max=MAX_ALTERNATIVES,
            help="Sampled plans to draw with --plot, besides the other mode's; 0 draws neither "
            f"[{DEFAULT_ALTERNATIVES}].",
        ),
    ] = None,
) -> None:
    """Plan one request: twelve camera frames in, a trajectory out."""
    from autovla_rt.runtime.sampling import Sampling

    if alternatives is not None and plot is None:
        raise typer.BadParameter("--alternatives are drawn: add --plot FILE.png, or leave it out")
    sampling = Sampling(
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        repetition_penalty=repetition_penalty,
        seed=seed,
    )
    refinement = read_decode(decode)
    request = read_request(frames, scene, sensor_root, speed, acceleration, instruction)
    for path in filter(None, (out, plot)):
        require_writable(path)
    if plot is not None:
        require_library("matplotlib", "--plot")
    from autovla_rt.runtime.planner import Planner

    start = time.perf_counter()
    planner = Planner.load(engine, threads=threads, verify=verify)
    _log(f"loaded {engine} in {time.perf_counter() - start:.2f} s")
    for remark in planner.bundle.manifest.notes:
        _log(f"note: {remark}")
    deadline = None
    if deadline_ms is not None:
        deadline = _deadline(deadline_ms, planner, request, threads)
    result = planner.plan(
        request,
        mode=mode.value,
        sampling=sampling,
        thinking_token_budget=thinking_token_budget,
        refinement=refinement,
        deadline=deadline,
    )
    if out is not None:
        write_file(out, (json.dumps(result.as_dict(), indent=1) + "\n").encode())
    if as_json:
        _print_json(result.as_dict())
    else:
        from autovla_rt.report import print_plan

        print_plan(result)
    if plot is not None:
        from autovla_rt.runtime.plan import Alternatives
        from autovla_rt.runtime.plot import draw_plan

        considered = Alternatives()
        if count := DEFAULT_ALTERNATIVES if alternatives is None else alternatives:
            start = time.perf_counter()
            considered = planner.alternatives(
                request,
                result,
                count=count,
                sampling=sampling,
                thinking_token_budget=thinking_token_budget,
            )
            _log(f"planned alternatives in {time.perf_counter() - start:.2f} s")
        draw_plan(result, request, considered, plot)


@codebook_app.command("import")
def codebook_import(
    source: Annotated[Path, typer.Argument(help="Pickle of the training repository.")],
    out: Annotated[Path, typer.Argument(help="Safetensors file to write.")],
) -> None:
    """Convert the official pickle, executing nothing in it."""
    from autovla_rt.export.codebook import import_codebook

    _print_codebook(import_codebook(source, out))


@codebook_app.command("build")
def codebook_build(
    scenes: Annotated[Path, typer.Argument(help="Folder with scene JSONs.")],
    out: Annotated[Path, typer.Argument(help="Safetensors file to write.")],
    disks: Annotated[int, typer.Option(help="Actions.")] = 2048,
    tolerance: Annotated[float, typer.Option(help="Radius of a disk, metres.")] = 0.05,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the draws.")] = 0,
    max_segments: Annotated[int, typer.Option(help="Segments to cluster at most.")] = 200_000,
) -> None:
    """Cluster recorded driving into a new codebook (K-disk)."""
    from dataclasses import asdict

    from autovla_rt.export.codebook import build_codebook

    built = build_codebook(
        scenes, out, num_disks=disks, tolerance=tolerance, seed=seed, max_segments=max_segments
    )
    _print_json(asdict(built))


@codebook_app.command("show")
def codebook_show(
    codebook: Annotated[Path, typer.Argument(help="Codebook, safetensors.")],
    png: Annotated[Path | None, typer.Argument(help="Picture to draw.")] = None,
) -> None:
    """Describe a codebook, and draw it to a PNG."""
    from autovla_rt.export.codebook import describe_codebook, draw_codebook

    info = describe_codebook(codebook)
    if png is not None:
        draw_codebook(codebook, png)
    _print_codebook(info)


def main() -> None:
    """Run the command line; an error of ours is one message and its exit code."""
    logging.basicConfig(format="%(levelname)s: %(message)s", stream=sys.stderr)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal without "°" still shows the table
    try:
        with _named_libraries():
            app()
    except AutovlaError as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(error.exit_code)


@contextlib.contextmanager
def _named_libraries() -> Iterator[None]:
    """Turn a failed import of an optional library into the pip line that installs it."""
    try:
        yield
    except ModuleNotFoundError as error:
        library = (error.name or "").partition(".")[0]
        if library == __package__:
            raise DependencyError(
                f"{error.name} is missing: the package reaches its folders through symbolic links, "
                "which this checkout lacks.\n"
                "Restore them: git config core.symlinks true && git checkout -- autovla_rt"
            ) from error
        if library not in EXTRAS:
            raise
        raise missing_library(library, "this command") from error


def _deadline(
    milliseconds: float, planner: Planner, request: Request, threads: int | None
) -> Deadline:
    """Warm the engine up, then start the clock.

    Raises:
        InputError: nothing was measured here, or a plan takes longer.
    """
    from autovla_rt.runtime.deadline import Deadline
    from autovla_rt.runtime.device import device_name
    from autovla_rt.runtime.latency import load_latency

    latency = load_latency(planner.bundle, device_name(), threads)
    planner.plan(request, thinking_token_budget=WARM_UP_TOKENS)
    return Deadline(milliseconds, latency)


def _log(message: str) -> None:
    typer.echo(message, err=True)


def _print_json(value: Any) -> None:
    typer.echo(json.dumps(value, indent=1))


def _print_codebook(info: CodebookInfo) -> None:
    from dataclasses import asdict

    _print_json(asdict(info))
