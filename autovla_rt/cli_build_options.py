"""Options of the commands that work on a checkpoint, and how they are read."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

from autovla_rt.errors import InputError
from autovla_rt.versions import Version, read_version

DEFAULT_FRAME_SIZE = ("1920x1080",)
SIZE = re.compile(r"(?:([a-z_]+)=)?([1-9][0-9]{0,4})x([1-9][0-9]{0,4})", re.ASCII)

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
TensorRtVersion = Annotated[
    str | None,
    typer.Option(
        "--tensorrt",
        help="TensorRT of the device, as in 10.3: before 10.15, graphs do without its newer "
        "layers; else 10.15 or newer.",
    ),
]


def read_frame_sizes(given: list[str] | None) -> dict[str, tuple[int, int]]:
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


def read_tensorrt(given: str | None) -> Version | None:
    """Read --tensorrt."""
    try:
        return None if given is None else read_version(given)
    except ValueError as error:
        raise InputError(
            f"--tensorrt {given}: {error}.\nThe device's is what its "
            'python3 -c "import tensorrt; print(tensorrt.__version__)" says.'
        ) from None
