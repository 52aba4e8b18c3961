"""The commands that work on a checkpoint: export, calibrate and build."""

from __future__ import annotations

import contextlib
import enum
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from autovla_rt.cli_build_options import (
    AddActionTokens,
    AddVisionId,
    Base,
    Block,
    Calibration,
    Capacity,
    Checkpoint,
    CodebookFile,
    Config,
    FrameSize,
    ModelOptPython,
    NewFolder,
    Out,
    PrecisionName,
    RecipeFile,
    TargetName,
    TensorRtVersion,
    read_frame_sizes,
    read_tensorrt,
)
from autovla_rt.cli_options import require_library
from autovla_rt.errors import GateError, TargetError

if TYPE_CHECKING:
    from autovla_rt.bundle import Quality
    from autovla_rt.export.open_model import ModelFiles
    from autovla_rt.export.opened_model import OpenedModel


class Part(enum.StrEnum):
    """What to export."""

    vision = "vision"
    language = "language"
    all = "all"
    checkpoint = "checkpoint"
    edgellm = "edgellm"
    trtllm = "trtllm"


GRAPHS = (Part.vision, Part.language, Part.all)
"""What is exported as graphs of our own."""

BOTH = ("vision", "language")
ENGINES = dict.fromkeys(Part, BOTH) | {
    Part.vision: BOTH[:1],
    Part.language: BOTH[1:],
    Part.trtllm: BOTH[1:],
}
"""The engines that are made of a part."""


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
    precision: PrecisionName = None,
    int4_block: Block = 128,
    frame_size: FrameSize = None,
    kv_capacity: Capacity = 2048,
    calibration: Calibration = None,
    modelopt: ModelOptPython = None,
    tensorrt: TensorRtVersion = None,
    exporter: Annotated[
        Path | None,
        typer.Option(
            help="With edgellm: NVIDIA's tensorrt-edgellm-export, or the python beside it; writes "
            "ONNX, too."
        ),
    ] = None,
) -> None:
    """Export the vision encoder or the language backbone as ONNX, without a bundle around it.

    Or all of it as a checkpoint in fp16, int8_sq, int8_wo, int4_awq or fp8, which TensorRT Edge-LLM
    and TensorRT-LLM read; a precision for both towers (int8_sq) leaves vision in fp16 there. Or
    that checkpoint with grammar, requests and commands for Edge-LLM on a Jetson (edgellm); or the
    language backbone for trtllm-build, with what its engine is used with (trtllm).
    """
    if exporter is not None and part is not Part.edgellm:
        raise typer.BadParameter("--exporter goes with edgellm")
    if tensorrt is not None and part not in GRAPHS:
        raise typer.BadParameter("--tensorrt goes with vision, language and all")
    from autovla_rt.bundle_writer import folder_writer
    from autovla_rt.edgellm_export import check_edgellm, export_edgellm
    from autovla_rt.export.build import (
        camera_layout,
        export_language,
        export_vision,
        require_calibration,
    )
    from autovla_rt.export.engine_memory import require_room
    from autovla_rt.export.open_model import ModelFiles
    from autovla_rt.export.settings import Settings, check_settings
    from autovla_rt.export.targets import find_target
    from autovla_rt.export.trtllm import export_trtllm
    from autovla_rt.export.trtllm_settings import check_trtllm
    from autovla_rt.export.unified import export_checkpoint
    from autovla_rt.export.unified_settings import check_unified, engine_choice, unified_choice
    from autovla_rt.report import ExportProgress

    files = ModelFiles(checkpoint, config, base, codebook, recipe, add_action_tokens, add_vision_id)
    sizes = read_frame_sizes(frame_size)
    settings = Settings(
        out.resolve().name,
        target,
        precision or find_target(target).recipe.precision,
        int4_block,
        kv_capacity,
        sizes,
        calibration=calibration,
        modelopt=modelopt,
        tensorrt=read_tensorrt(tensorrt),
    )
    unified = (Part.checkpoint, Part.edgellm)
    checks = dict.fromkeys(unified, check_unified) | {Part.trtllm: check_trtllm}
    checks.get(part, check_settings)(settings)
    if part is Part.edgellm:
        check_edgellm(settings.target, exporter)
    with _opened(files) as model:
        cameras = camera_layout(model, settings)
        if find_target(target).sm is not None:
            choice = engine_choice(settings) if part in checks else settings.choice
            _log(require_room(model.geometry, settings, choice, cameras, ENGINES[part]))
        with folder_writer(out) as folder, ExportProgress() as progress:
            require_calibration(model, settings, cameras)
            if part in (Part.vision, Part.all):
                export_vision(model, settings, cameras, folder, progress)
            if part in (Part.language, Part.all):
                export_language(model, settings, cameras, folder, progress)
            if part is Part.checkpoint:
                export_checkpoint(model, settings, folder, progress)
            if part is Part.edgellm:
                export_edgellm(model, settings, cameras, folder, exporter, progress)
            if part is Part.trtllm:
                export_trtllm(model, settings, cameras, folder, progress)
        if part in unified:
            _log(f"precision (vision tower/language model): {unified_choice(settings)}")
    _log(f"exported to {out}")


def calibrate(
    checkpoint: Checkpoint,
    config: Config,
    scenes: Annotated[
        Path, typer.Option(help="Folder of AutoVLA's preprocessed scenes, a JSON each.")
    ],
    sensor_root: Annotated[Path, typer.Option(help="Root of the scenes' paths.")],
    out: Annotated[
        Path,
        typer.Option(
            help="Folder to write: new, or of an interrupted run, which goes on.",
            show_default=False,
        ),
    ],
    base: Base = None,
    codebook: CodebookFile = None,
    recipe: RecipeFile = None,
    add_action_tokens: AddActionTokens = False,
    add_vision_id: AddVisionId = False,
    frame_size: FrameSize = None,
    count: Annotated[int, typer.Option(help="Scenes to take.")] = 32,
    seed: Annotated[int, typer.Option(min=0, help="Of the draw of scenes.")] = 0,
) -> None:
    """Collect what every layer sees of real scenes, for `build --calibration`."""
    from autovla_rt.calibration_scenes import SampleReader, find_scenes
    from autovla_rt.export.build import camera_layout, engine_prompt
    from autovla_rt.export.calibrate import calibrate as calibrate_model
    from autovla_rt.export.open_model import ModelFiles
    from autovla_rt.export.settings import Settings
    from autovla_rt.report import ExportProgress

    files = ModelFiles(checkpoint, config, base, codebook, recipe, add_action_tokens, add_vision_id)
    chosen = find_scenes(scenes, count, seed)
    settings = Settings(out.resolve().name, frame_sizes=read_frame_sizes(frame_size))
    with _opened(files) as model, ExportProgress() as progress:
        cameras = camera_layout(model, settings)
        prompt = engine_prompt(model, cameras)
        samples = SampleReader(model, cameras, prompt).read(chosen, sensor_root)
        calibrate_model(model, cameras, prompt, samples, out, progress)
    _log(f"calibration: {out}")


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
    precision: Annotated[
        str | None,
        typer.Option(help="As for `export`; or --fit, --max-ade-increase."),
    ] = None,
    int4_block: Block = 128,
    frame_size: FrameSize = None,
    kv_capacity: Capacity = 2048,
    calibration: Calibration = None,
    modelopt: ModelOptPython = None,
    tensorrt: TensorRtVersion = None,
    scenes: Annotated[
        Path | None,
        typer.Option(help="Folder of scenes: judge the engine on them before it is written."),
    ] = None,
    sensor_root: Annotated[Path | None, typer.Option(help="Root of the scenes' paths.")] = None,
    against: Annotated[
        Path | None,
        typer.Option(help="Engine to compare with; else one in fp32, built for it."),
    ] = None,
    gate: Annotated[
        str | None, typer.Option(help="Limits NAME=NUMBER,... over the defaults (see `eval`).")
    ] = None,
    fit: Annotated[
        str | None,
        typer.Option(
            help="latency=MS,memory=MIB of a request on this machine: choose the precision of each "
            "part that is closest to the reference within them."
        ),
    ] = None,
    max_ade_increase: Annotated[
        float | None,
        typer.Option(
            min=0, help="As a share: choose the fastest precisions that keep it, and the gate."
        ),
    ] = None,
    threads: Annotated[
        int | None,
        typer.Option(min=1, help="Of the engines that --fit times; else every core."),
    ] = None,
    note: Annotated[list[str] | None, typer.Option(help="Remark kept in the bundle.")] = None,
) -> None:
    """Build an engine bundle: export, quantize, judge on scenes if given, write atomically.

    A bundle that does not pass is written, too, and says so; the exit code is 15 then.
    """
    is_fitted = fit is not None or max_ade_increase is not None
    if scenes is None and (is_fitted or (sensor_root, against, gate) != (None, None, None)):
        raise typer.BadParameter(
            "--sensor-root, --against, --gate, --fit and --max-ade-increase go with --scenes"
        )
    if threads is not None and not is_fitted:
        raise typer.BadParameter("--threads goes with --fit or --max-ade-increase")
    if is_fitted and precision is not None:
        raise typer.BadParameter("--fit and --max-ade-increase choose the precision themselves")
    if scenes is not None and sensor_root is None:
        raise typer.BadParameter("--scenes needs --sensor-root: the folder its paths start from")
    from autovla_rt.export.build import build_engine, camera_layout
    from autovla_rt.export.engine_memory import require_room
    from autovla_rt.export.open_model import ModelFiles
    from autovla_rt.export.settings import Settings, check_settings
    from autovla_rt.export.targets import find_target
    from autovla_rt.report import ExportProgress

    files = ModelFiles(checkpoint, config, base, codebook, recipe, add_action_tokens, add_vision_id)
    sizes, notes = read_frame_sizes(frame_size), tuple(note or ())
    if is_fitted:
        precision = "fp32" if calibration is None else "int8_sq"  # of what is checked first
    settings = Settings(
        out.resolve().name,
        target,
        precision or find_target(target).recipe.precision,
        int4_block,
        kv_capacity,
        sizes,
        notes,
        calibration,
        modelopt,
        read_tensorrt(tensorrt),
    )
    is_for_gpu = check_settings(settings).sm is not None
    if is_for_gpu and scenes is not None:
        raise TargetError(
            f"target {target}: expected no --scenes, since no engine of a GPU runs before it is "
            "compiled there.\nBuild without them, and judge it on the device: autovla-rt compile, "
            "then autovla-rt eval; here, the same graphs with --target cpu-standard."
        )
    quality = None
    with _opened(files) as model, ExportProgress() as progress:
        if is_for_gpu:
            cameras = camera_layout(model, settings)
            _log(require_room(model.geometry, settings, settings.choice, cameras, BOTH))
        if scenes is None or sensor_root is None:
            build_engine(model, settings, out, progress)
        else:
            require_library("matplotlib", "--scenes")
            from autovla_rt.judged_build import Judging, judged_build
            from autovla_rt.precision_search import read_wish
            from autovla_rt.runtime.evaluation.gate import read_limits

            limits = read_limits(gate)
            if max_ade_increase is not None:
                limits["ade_increase"] = max_ade_increase
            wish = read_wish(fit) if is_fitted else None
            judging = Judging(scenes, sensor_root, against, limits, wish, threads)
            quality = judged_build(model, settings, out, progress, judging).quality
    _log(f"engine bundle: {out}")
    if quality is not None and not quality.passed:
        raise _not_passed(out, quality)


def _not_passed(out: Path, quality: Quality) -> GateError:
    listed = ", ".join(
        f"{name} {measured:.4g} (limit {quality.limits[name]:g})"
        for name, measured in quality.measured.items()
        if measured is not None
    )
    return GateError(
        f"{out}: expected plans within the gate, got {listed}.\n"
        f"The bundle was written and says that it did not pass; {out}/evaluation.html has the "
        "figures. Calibrate on more scenes, choose a finer precision, or set --gate."
    )


@contextlib.contextmanager
def _opened(files: ModelFiles) -> Iterator[OpenedModel]:
    """Open the checkpoint and check that its answers compile."""
    from autovla_rt.export.open_model import open_model
    from autovla_rt.runtime.grammar import compile_answer

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


def _log(message: str) -> None:
    """Say something on stderr."""
    typer.echo(message, err=True)
