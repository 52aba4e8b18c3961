"""The command line: it parses, calls export or runtime, and prints.

Heavy imports stand inside the commands, so that --help answers at once. Results go to stdout, logs
and progress to stderr.
"""

from __future__ import annotations

import contextlib
import enum
import importlib.util
import io
import json
import logging
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from autovla_rt import __version__, cli_doctor, cli_profile, cli_world
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
from autovla_rt.errors import AutovlaError, DependencyError, InputError
from autovla_rt.output_file import require_writable, write_file

if TYPE_CHECKING:
    from autovla_rt.export.build import OpenedModel, Settings
    from autovla_rt.export.codebook import CodebookInfo
    from autovla_rt.export.open_model import ModelFiles
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
        "12 camera layout, 13 too little memory."
    ),
)
codebook_app = typer.Typer(help="Import, build and show action codebooks.", no_args_is_help=True)
app.add_typer(codebook_app, name="codebook")
app.command()(cli_profile.profile)
app.command()(cli_doctor.doctor)
app.command()(cli_world.drive)
app.command()(cli_world.scenes)

DEFAULT_ALTERNATIVES, MAX_ALTERNATIVES = 8, 64
WARM_UP_TOKENS = 2
DEFAULT_FRAME_SIZE = ("1920x1080",)
SIZE = re.compile(r"(?:([a-z_]+)=)?([1-9][0-9]{0,4})x([1-9][0-9]{0,4})", re.ASCII)

EXTRAS = {
    "onnx": "export",
    "ml_dtypes": "export",
    "yaml": "export",
    "matplotlib": "plot",
    "numba": "demo",
    "openvino": "openvino",
}
"""Library -> extra of the package that installs it."""


class Part(enum.StrEnum):
    """What to export."""

    vision = "vision"
    language = "language"
    all = "all"


Checkpoint = Annotated[
    Path, typer.Option(help="Hugging Face folder or Lightning .ckpt.", show_default=False)
]
Config = Annotated[
    Path, typer.Option(help="YAML config of the training repository.", show_default=False)
]
Base = Annotated[
    Path | None,
    typer.Option(help="Hugging Face folder with config.json and tokenizer [from the config]."),
]
CodebookFile = Annotated[
    Path | None, typer.Option(help="Action codebook, pickle or safetensors [from the config].")
]
RecipeFile = Annotated[
    Path | None,
    typer.Option(help="Training checkout or .toml recipe [the checkout the config lies in]."),
]
AddActionTokens = Annotated[
    bool,
    typer.Option(
        "--add-action-tokens", help="Append the action tokens to a folder's tokenizer if absent."
    ),
]
AddVisionId = Annotated[
    bool,
    typer.Option(
        "--add-vision-id",
        help='Write "Video N: " before each video, as transformers newer than AutoVLA\'s pin do.',
    ),
]
TargetName = Annotated[str, typer.Option("--target", help="Device to build for.")]
PrecisionName = Annotated[str, typer.Option("--precision", help="fp32, int8 or int4 on a CPU.")]
Block = Annotated[int, typer.Option(help="Inputs that share an int4 scale.")]
FrameSize = Annotated[
    list[str] | None,
    typer.Option(
        help="WIDTHxHEIGHT of all frames, or CAMERA=WIDTHxHEIGHT of one camera's; repeatable "
        "[1920x1080]."
    ),
]
Capacity = Annotated[int, typer.Option(min=1, help="Sequence positions of the KV cache.")]
Out = Annotated[
    Path, typer.Option(help="Folder to write; a bundle is replaced.", show_default=False)
]
NewFolder = Annotated[Path, typer.Option(help="Folder to write, new or empty.", show_default=False)]
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
def export(
    part: Annotated[Part, typer.Argument(help="What to export.", show_default=False)],
    checkpoint: Checkpoint,
    config: Config,
    out: NewFolder,
    base: Base = None,
    codebook: CodebookFile = None,
    recipe: RecipeFile = None,
    add_action_tokens: AddActionTokens = False,
    add_vision_id: AddVisionId = False,
    target: TargetName = "cpu",
    precision: PrecisionName = "int8",
    int4_block: Block = 128,
    frame_size: FrameSize = None,
    kv_capacity: Capacity = 2048,
) -> None:
    """Export the vision encoder or the language backbone as ONNX, without a bundle around it."""
    from autovla_rt.bundle_writer import folder_writer
    from autovla_rt.export.build import Settings, camera_layout, export_language, export_vision
    from autovla_rt.export.open_model import ModelFiles
    from autovla_rt.report import ExportProgress

    files = ModelFiles(checkpoint, config, base, codebook, recipe, add_action_tokens, add_vision_id)
    sizes = _frame_sizes(frame_size)
    settings = Settings(out.resolve().name, target, precision, int4_block, kv_capacity, sizes)
    with (
        _opened(files, settings) as model,
        folder_writer(out) as folder,
        ExportProgress() as progress,
    ):
        cameras = camera_layout(model, settings)
        if part in (Part.vision, Part.all):
            export_vision(model, settings, cameras, folder, progress)
        if part in (Part.language, Part.all):
            export_language(model, settings, cameras, folder, progress)
    _log(f"exported to {out}")


@app.command()
def build(
    checkpoint: Checkpoint,
    config: Config,
    out: Out,
    base: Base = None,
    codebook: CodebookFile = None,
    recipe: RecipeFile = None,
    add_action_tokens: AddActionTokens = False,
    add_vision_id: AddVisionId = False,
    target: TargetName = "cpu",
    precision: PrecisionName = "int8",
    int4_block: Block = 128,
    frame_size: FrameSize = None,
    kv_capacity: Capacity = 2048,
    note: Annotated[list[str] | None, typer.Option(help="Remark kept in the bundle.")] = None,
) -> None:
    """Build an engine bundle: export, quantize, write atomically."""
    from autovla_rt.export.build import Settings, build_engine
    from autovla_rt.export.open_model import ModelFiles
    from autovla_rt.report import ExportProgress

    files = ModelFiles(checkpoint, config, base, codebook, recipe, add_action_tokens, add_vision_id)
    sizes, notes = _frame_sizes(frame_size), tuple(note or ())
    settings = Settings(
        out.resolve().name, target, precision, int4_block, kv_capacity, sizes, notes
    )
    with _opened(files, settings) as model, ExportProgress() as progress:
        build_engine(model, settings, out, progress)
    _log(f"engine bundle: {out}")


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
    threads: Annotated[int | None, typer.Option(help="Threads [every physical core].")] = None,
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
        _require_library("matplotlib", "--plot")
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
        from autovla_rt.runtime.planner import Alternatives
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
        raise _missing(library, "this command") from error


def _require_library(library: str, user: str) -> None:
    """Find out before any work that an optional library is missing."""
    if importlib.util.find_spec(library) is None:
        raise _missing(library, user)


def _missing(library: str, user: str) -> DependencyError:
    return DependencyError(
        f"{user} needs {library}, which is not installed here.\n"
        f"Install it: pip install 'autovla-rt[{EXTRAS[library]}]'"
    )


@contextlib.contextmanager
def _opened(files: ModelFiles, settings: Settings) -> Iterator[OpenedModel]:
    """Check the target before any work, open the checkpoint, check that its answers compile."""
    from autovla_rt.export.build import check_settings
    from autovla_rt.export.open_model import open_model
    from autovla_rt.runtime.grammar import compile_answer

    check_settings(settings)
    _log(f"opening {files.checkpoint}")
    model = open_model(files)
    with contextlib.closing(model.checkpoint):
        compile_answer(
            model.tokenizer,
            model.recipe.answer,
            use_cot=model.use_cot,
            actions=model.actions,
            end_token_id=model.end_token_ids[0],
        )
        yield model


def _frame_sizes(given: list[str] | None) -> dict[str, tuple[int, int]]:
    """Read --frame-size: one size for all cameras, or CAMERA=WIDTHxHEIGHT."""
    from autovla_rt.config import CAMERAS

    sizes: dict[str, tuple[int, int]] = {}
    for text in given or DEFAULT_FRAME_SIZE:
        match = SIZE.fullmatch(text)
        if match is None or match[1] not in (None, *CAMERAS):
            raise InputError(
                f"--frame-size {text[:40]}: expected WIDTHxHEIGHT in pixels such as 1920x1080, or "
                f"one of {', '.join(CAMERAS)} before it, as in front=1920x1080."
            )
        for name in [match[1]] if match[1] else CAMERAS:
            sizes[name] = int(match[2]), int(match[3])
    if missing := [name for name in CAMERAS if name not in sizes]:
        raise InputError(
            f"--frame-size: expected a size for every camera, got none for {', '.join(missing)}.\n"
            f"Add --frame-size {missing[0]}=WIDTHxHEIGHT, or one size without a camera for all."
        )
    return sizes


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
