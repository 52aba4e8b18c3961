"""Which number format each layer gets: what `--precision` says.

BASE[,PART=FORMAT...], where BASE is a name of `PRECISIONS` or VISION/LANGUAGE, and PART one of
`PARTS`, "kv", or the beginning of layers' names in the checkpoint, such as visual.blocks.3.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from autovla_rt.config import is_vision
from autovla_rt.errors import TargetError
from autovla_rt.export.weight_source import TEXT_HEAD

PRECISIONS = {
    "fp32": ("fp32", "fp32"),
    "fp16": ("fp16", "fp16"),
    "fp8": ("fp8", "fp8"),
    "int8": ("int8", "int8"),
    "int8_wo": ("int8_wo", "int8_wo"),
    "int8_sq": ("int8_sq", "int8_sq"),
    "int4": ("int8", "int4"),
    "int4_awq": ("int8_sq", "int4_awq"),
    "nvfp4": ("fp16", "nvfp4"),
}
"""Precision of an engine -> (vision, language)."""

VISION_PRECISIONS = ("fp32", "fp16", "fp8", "int8", "int8_wo", "int8_sq")
"""A vision tower in int4 loses too much."""

NUMBER_FORMATS = {"int8_sq": "int8", "int4_awq": "int4"}
"""Calibrated precision -> the format that weights are stored in."""

KV = "kv"

PARTS = {
    "vision_ends": "the vision tower's first and last block and its merger",
    "attention": "projections of the language model's attention",
    "mlp": "the language model's MLPs",
    TEXT_HEAD: "the head that reasoning is read from",
    KV: "the keys and values that are kept",
}
"""Parts with a precision of their own, and what they are."""


@dataclass(frozen=True)
class Choice:
    """Precisions as chosen, calibrated or not.

    Attributes:
        vision: Of the vision tower.
        language: Of the language model and its text head.
        overrides: (part or beginning of a layer's name, precision); a later one counts.
        kv: Number format of the keys and values that are kept; "auto" is what is computed in.
    """

    vision: str
    language: str
    overrides: tuple[tuple[str, str], ...] = ()
    kv: str = "auto"

    def of(self, module: str, depth: int) -> str:
        """Return a layer's precision in a model whose vision tower has `depth` blocks."""
        for part, precision in reversed(self.overrides):
            if _covers(part, module, depth):
                return precision
        return self.vision if is_vision(module) else self.language

    def layers(self, depth: int) -> Callable[[str], str]:
        """Return a layer's precision by its name."""
        return lambda module: self.of(module, depth)

    def named(self) -> Iterator[tuple[str, str]]:
        """Yield the parts and their precisions, but for keys and values."""
        yield "vision", self.vision
        yield "language", self.language
        yield from self.overrides

    def __str__(self) -> str:
        """Return it as `read_choice` takes it, whatever name was short for it."""
        others = (*self.overrides, *([(KV, self.kv)] if self.kv != "auto" else []))
        changes = "".join(f",{part}={precision}" for part, precision in others)
        return f"{self.vision}/{self.language}{changes}"

    @property
    def is_calibrated(self) -> bool:
        """Whether it can be had only with a calibration."""
        chosen = {precision for _, precision in self.named()}
        return self.kv != "auto" or not chosen.isdisjoint(NUMBER_FORMATS)


def read_choice(
    text: str, names: Mapping[str, tuple[str, str]] = MappingProxyType(PRECISIONS)
) -> Choice:
    """Read a precision as the user writes it; `names` are those of both parts at once.

    Raises:
        TargetError: it is not written like one. Whether a target has it is not looked at.
    """
    base, *changes = text.split(",")
    vision, _, language = base.partition("/")
    if not language:
        vision, language = names.get(base, (base, base))
    kv, overrides = "auto", []
    for change in changes:
        part, _, precision = change.partition("=")
        if part == KV and precision:
            kv = precision
        elif precision and (part in PARTS or part.startswith(("visual.", "model.layers."))):
            overrides.append((part, precision))
        else:
            raise TargetError(
                f"precision {text[:80]}: expected BASE,PART=FORMAT,... with a part among "
                f"{', '.join(PARTS)}, or the beginning of layers' names such as visual.blocks.3, "
                f"got {change[:40]!r}."
            )
    return Choice(vision, language, tuple(overrides), kv)


def number_format(precision: str) -> str:
    """Return the format that weights of a precision are stored in."""
    return NUMBER_FORMATS.get(precision, precision)


def _covers(part: str, module: str, depth: int) -> bool:
    match part:
        case "vision_ends":
            ends = ("patch_embed", "blocks.0", f"blocks.{depth - 1}", "merger")
            return any(_begins(f"visual.{end}", module) for end in ends)
        case "attention" | "mlp":
            name = "self_attn" if part == "attention" else part
            return module.startswith("model.layers.") and f".{name}." in module
        case _:
            return _begins(part, module)


def _begins(part: str, module: str) -> bool:
    return module == part or module.startswith(f"{part}.")
