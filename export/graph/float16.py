"""Which values of a model become float16 in a graph, by name, and how large they may be.

A value's name is that of a module and a kind: what a linear layer reads or returns
(`model.layers.2.mlp.down_proj.input`), or what attention makes of what it returns.
"""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from autovla_rt.errors import TargetError

log = logging.getLogger("autovla_rt")

INPUT, OUTPUT, ROTATED, SCORES, SUM = "input", "output", "rotated", "scores", "sum"
"""Kinds of values: of a linear layer; queries and keys behind their rotation, and attention's
scaled scores, which go by the layer that returned the queries; of a norm, the residual stream."""

HALF_MAX = float(np.finfo(np.float16).max)
WARNED_SHARE = 0.25
"""Of it: calibration scenes are few, and values beyond theirs come."""


class Magnitudes(Protocol):
    """How large the values of a model were on calibration scenes."""

    def largest(self, value: str) -> float:
        """Return the largest |x| of a value, by its name."""
        ...


@dataclass(frozen=True)
class Kind:
    """Values of one kind.

    Attributes:
        names: Matches the ends of their names.
        what: Says what they are.
        widened: Whether they are float32 where their layer, or its MLP, is in fp32.
    """

    names: re.Pattern[str]
    what: str
    widened: bool = False


KINDS = (
    Kind(
        re.compile(r"(qkv|q_proj|gate_proj|up_proj|merger\.mlp\.0|text_head)\.input$"),
        "a norm's result",
        widened=True,
    ),
    Kind(re.compile(r"patch_embed\.proj\.input$"), "patches"),
    Kind(re.compile(r"(attn\.proj|o_proj)\.input$"), "attention's result"),
    Kind(re.compile(r"down_proj\.input$"), "silu(gate) * up", widened=True),
    Kind(re.compile(r"merger\.mlp\.2\.input$"), "gelu's result", widened=True),
    Kind(re.compile(r"(qkv|[qkv]_proj)\.output$"), "queries, keys or values"),
    Kind(re.compile(r"\.rotated$"), "queries and keys, rotated"),
    Kind(re.compile(r"\.scores$"), "attention's scores"),
    Kind(re.compile(r"(gate|up)_proj\.output$"), "a factor of the MLP", widened=True),
    Kind(re.compile(r"merger\.mlp\.0\.output$"), "what gelu reads", widened=True),
    Kind(re.compile(r"(proj|mlp\.2)\.output$"), "added to the residual stream", widened=True),
    Kind(re.compile(r"text_head\.output$"), "logits", widened=True),
    Kind(re.compile(r"\.sum$"), "the residual stream"),
)
"""All of them; the first that matches counts."""


def kind_of(value: str) -> Kind:
    """Return what a value is, by its name."""
    return next(kind for kind in KINDS if kind.names.search(value))


class RangeCheck:
    """Holds values that are to be float16 against a calibration, each once."""

    def __init__(self, magnitudes: Magnitudes) -> None:
        self._magnitudes = magnitudes
        self._checked: set[str] = set()

    def check(self, value: str) -> None:
        """Refuse, or warn of, a value that was large on the calibration scenes.

        Raises:
            TargetError: it was larger than float16 holds.
        """
        if value in self._checked:
            return
        self._checked.add(value)
        kind, largest = kind_of(value), self._magnitudes.largest(value)
        if largest > HALF_MAX:
            raise TargetError(
                f"{value} ({kind.what}): expected values up to {HALF_MAX:g}, the largest float16, "
                f"got {largest:g} on the calibration scenes. {_remedy(value, kind)}"
            )
        if largest > WARNED_SHARE * HALF_MAX:
            log.warning(
                "%s (%s): up to %g on the calibration scenes, %.0f %% of float16's largest number. "
                "%s",
                value,
                kind.what,
                largest,
                100 * largest / HALF_MAX,
                _remedy(value, kind),
            )


def _remedy(value: str, kind: Kind) -> str:
    if not kind.widened:
        return "Attention and what it reads are float16 there: choose --target cpu or x86."
    module = value.rpartition(".")[0]
    block, mlp, _ = module.partition(".mlp.")
    part = f"{block}.mlp" if mlp else module
    return f"Compute it in float32, with {part}=fp32 behind --precision, as in fp16,{part}=fp32."
