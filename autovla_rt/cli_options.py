"""Options that several commands share."""

from __future__ import annotations

import enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from autovla_rt.runtime.draft import Refinement

DEFAULT_ENGINE = Path("engines/demo")


EXACT = "exact"
Decode = Annotated[
    str,
    typer.Option(
        help="exact, or refine:K[:CM], lossy: at most K passes over a draft, fewer once one moves "
        "no pose by more than CM centimetres."
    ),
]


class Mode(enum.StrEnum):
    """Who decides between the fast and the slow answer."""

    auto = "auto"
    fast = "fast"
    slow = "slow"


def read_decode(text: str) -> Refinement | None:
    """Read --decode; None is exact.

    Raises:
        BadParameter: it is neither exact nor refine:K[:CM].
    """
    from autovla_rt.errors import InputError
    from autovla_rt.runtime.draft import Refinement

    if text == EXACT:
        return None
    kind, _, numbers = text.partition(":")
    passes, _, centimetres = numbers.partition(":")
    try:
        if kind == "refine":
            return Refinement(int(passes), float(centimetres or 0) / 100)
    except (ValueError, InputError):
        pass
    raise typer.BadParameter(
        "--decode: expected exact or refine:K[:CM] with K passes from 1 and CM centimetres from 0, "
        f"such as refine:2 or refine:10:20, got {text!r}"
    )
