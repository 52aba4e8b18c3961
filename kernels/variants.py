"""Which GPU kernels a model needs: functions, and what each is specialised for."""

from __future__ import annotations

from dataclasses import dataclass

from autovla_rt.errors import TargetError
from autovla_rt.kernels import action_layout, resize_plan

TOP_COUNTS = (1, 8)
"""How many best actions a variant of the action head gives."""

_TABLES = {"starts": "*i32", "digits": "*i8", "bias": "*i32"}
_SIZES = ("height", "pitch", "byte_window", "row_window", "out_height", "out_width")
_TILES = ("TILE_PIXELS", "TILE_CHANNELS", "TILE_ROWS", "BYTE_CHUNK", "ROW_CHUNK", "ALIGNMENT")
_WEIGHTS = {"fp16": "*fp16", "int8": "*i8", "int4": "*u8"}


@dataclass(frozen=True)
class Variant:
    """A kernel and what it is specialised for.

    Attributes:
        name: Unique.
        kernel: The function; it stands in the module triton_{kernel}.
        arguments: Name -> Triton's type, in order.
        aligned: Numbers among them that are multiples of 16, as all addresses are.
        constants: Its compile-time constants.
        warps: Of a program.
        stages: Of a loop's loads, the one in use included.
    """

    name: str
    kernel: str
    arguments: dict[str, str]
    aligned: tuple[str, ...]
    constants: dict[str, int]
    warps: int
    stages: int


def variants(
    *, patch: int = 14, merge: int = 2, clip: int = 2, hidden_size: int = 2048, block: int = 128
) -> list[Variant]:
    """Return the kernels of a model; the defaults are those of Qwen2.5-VL-3B.

    Args:
        patch: Pixels of a patch's side.
        merge: Patches of a token's side.
        clip: Frames of a temporal patch.
        hidden_size: Of the language model.
        block: Inputs that share a scale in int4.

    Raises:
        TargetError: `block` is not a power of two from 32 on, or does not divide `hidden_size`.
    """
    if block < 32 or block & (block - 1) or hidden_size % block:
        raise TargetError(
            f"a hidden size of {hidden_size} in blocks of {block}: expected whole blocks of a "
            "power of two from 32 on. Choose another block."
        )
    heads = [
        _action_head(weights, top, hidden_size, block)
        for weights in action_layout.BITS
        for top in TOP_COUNTS
    ]
    return [_resize_patchify(patch, merge, clip), *heads]


def head_name(weights: str, top: int) -> str:
    """Return the name of the action head for weights of a format that gives the `top` best."""
    return f"action_head_{weights}_top{top}"


def _resize_patchify(patch: int, merge: int, clip: int) -> Variant:
    tables = {f"{of}_{table}": kind for of in ("byte", "row") for table, kind in _TABLES.items()}
    return Variant(
        "resize_patchify",
        "resize_patchify",
        {
            "frames": "*u8",
            **tables,
            "values": "*fp16",
            "patches": "*fp16",
            **dict.fromkeys(_SIZES, "i32"),
        },
        ("pitch", "byte_window", "row_window"),
        {
            "PATCH": patch,
            "MERGE": merge,
            "CLIP": clip,
            **{name: getattr(resize_plan, name) for name in _TILES},
        },
        warps=4,
        stages=2,
    )


def _action_head(weights: str, top: int, hidden_size: int, block: int) -> Variant:
    candidates = 1 << (action_layout.programs(action_layout.MAX_ACTIONS) * top - 1).bit_length()
    return Variant(
        head_name(weights, top),
        "action_head",
        {
            "hidden": "*fp16",
            "weight": _WEIGHTS[weights],
            "scales": "*fp32",
            "allowed": "*i32",
            "logits": "*fp32",
            "partial": "*i64",
            "arrived": "*i32",
            "best_ids": "*i32",
            "best_logits": "*fp32",
            "rows": "i32",
            "actions": "i32",
        },
        (),
        {
            "WIDTH": hidden_size,
            "BITS": action_layout.BITS[weights],
            "BLOCK": block,
            "TILE_ACTIONS": action_layout.TILE_ACTIONS,
            "TILE_ROWS": action_layout.MAX_ROWS,
            "TOP": top,
            "CANDIDATES": candidates,
            # As many rows at once as registers hold.
            "FINAL_ROWS": max(1, action_layout.MAX_ROWS // top),
        },
        warps=2,
        stages=4,
    )
