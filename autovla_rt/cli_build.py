"""The commands that work on a checkpoint: export, calibrate and build."""

from __future__ import annotations

import contextlib
import enum
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from autovla_rt.cli_options import require_library
from autovla_rt.errors import GateError, InputError, TargetError

if TYPE_CHECKING:
    from autovla_rt.bundle import Quality
    from autovla_rt.export.open_model import ModelFiles
    from autovla_rt.export.opened_model import OpenedModel

DEFAULT_FRAME_SIZE = ("1920x1080",)
SIZE = re.compile(r"(?:([a-z_]+)=)?([1-9][0-9]{0,4})x([1-9][0-9]{0,4})", re.ASCII)


class Part(enum.StrEnum):
    """What to export."""

    vision = "vision"
    language = "language"
    all = "all"
    checkpoint = "checkpoint"
    edgellm = "edgellm"
    trtllm = "trtllm"


BOTH = ("vision", "language")
ENGINES = dict.fromkeys(Part, BOTH) | {
    Part.vision: BOTH[:1],
    Part.language: BOTH[1:],
    Part.trtllm: BOTH[1:],
}
"""The engines that are made of a part."""

Checkpoint = Annotated[
    Path, typer.Option(help="Hugging Face folder or Lightning .ckpt.", show_default=False)
]
Config = Annotated[
    Path, typer.Option(help="YAML config of the training repository.", show_default=False)
]
Base = Annotated[
    Path | None,
    typer.Option(help="Hugging Face folder with config.json and tokenizer; else from the config."),
]
CodebookFile = Annotated[
    Path | None,
    typer.Option(help="Action codebook, pickle or safetensors; else from the config."),
]
RecipeFile = Annotated[
    Path | None,
    typer.Option(help="Training checkout or .toml recipe; else the checkout the config lies in."),
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
PrecisionName = Annotated[
    str | None,
    typer.Option(
        "--precision",
        help="fp32, fp16; int8, int8_wo, int4, fp8: rounded; int8_sq, int4_awq: calibrated. Or "
        "VISION/LANGUAGE, and PART=PRECISION,... behind it; else the target's (see `targets`).",
    ),
]
Block = Annotated[int, typer.Option(help="Inputs that share an int4 scale.")]
FrameSize = Annotated[
    list[str] | None,
    typer.Option(
        help="WIDTHxHEIGHT of all frames, or CAMERA=WIDTHxHEIGHT of one camera's; repeatable; "
        "else 1920x1080."
    ),
]
Capacity = Annotated[int, typer.Option(min=1, help="Sequence positions of the KV cache.")]
Out = Annotated[
    Path, typer.Option(help="Folder to write; a bundle is replaced.", show_default=False)
]
Calibration = Annotated[
    Path | None,
    typer.Option(
        help="Folder of `calibrate`: int8_sq, int4_awq; on NVIDIA GPUs int8, fp8, and for any "
        "precision there, which is then held against float16's range."
    ),
]
ModelOptPython = Annotated[
    Path | None,
    typer.Option(
        "--modelopt",
        help="Python of an environment with NVIDIA ModelOpt, which then searches the scales.",
    ),
]
NewFolder = Annotated[Path, typer.Option(help="Folder to write, new or empty.", show_default=False)]


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
    sizes = _frame_sizes(frame_size)
    settings = Settings(
        out.resolve().name,
        target,
        precision or find_target(target).recipe.precision,
        int4_block,
        kv_capacity,
        sizes,
        calibration=calibration,
        modelopt=modelopt,
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
    settings = Settings(out.resolve().name, frame_sizes=_frame_sizes(frame_size))
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
    from autovla_rt.export.build import build_engine
    from autovla_rt.export.open_model import ModelFiles
    from autovla_rt.export.settings import Settings, check_settings
    from autovla_rt.export.targets import find_target
    from autovla_rt.report import ExportProgress

    files = ModelFiles(checkpoint, config, base, codebook, recipe, add_action_tokens, add_vision_id)
    sizes, notes = _frame_sizes(frame_size), tuple(note or ())
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
    )
    if check_settings(settings).sm is not None and scenes is not None:
        raise TargetError(
            f"target {target}: expected no --scenes, since no engine of a GPU runs before it is "
            "compiled there.\nBuild without them, and judge it on the device: autovla-rt compile, "
            "then autovla-rt eval; here, the same graphs with --target cpu-standard."
        )
    quality = None
    with _opened(files) as model, ExportProgress() as progress:
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


def _log(message: str) -> None:
    """Say something on stderr."""
    typer.echo(message, err=True)
