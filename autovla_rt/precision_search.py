"""Which precision each part of an engine gets: measured part by part, then put together.

Every part is quantized alone and measured. What that costs in closeness and gains in time and
memory is added up for a combination: a first-order prediction, good enough to say which few are
worth building and judging whole.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import NamedTuple

import numpy as np

from autovla_rt.errors import InputError

FLOAT = "fp32"
PARTS = ("vision", "vision_ends", "attention", "mlp", "text_head", "kv")
"""In the order in which a combination is told; "vision" is its blocks between the ends."""

Combination = Mapping[str, str]
"""Part -> precision."""


class Figures(NamedTuple):
    """What an engine is measured by; less of each is better.

    Attributes:
        loss: KL to the reference in nats: of actions, choice of mode and text of reasoning, summed.
        ms: A request, median.
        mib: The process's memory at its peak.
    """

    loss: float
    ms: float
    mib: float

    def plus(self, other: Figures) -> Figures:
        """Return the sum of each."""
        return Figures(*(a + b for a, b in zip(self, other, strict=True)))

    def minus(self, other: Figures) -> Figures:
        """Return the difference of each."""
        return Figures(*(a - b for a, b in zip(self, other, strict=True)))


@dataclass(frozen=True)
class Wish:
    """What is asked of an engine.

    Attributes:
        latency: Most milliseconds of a request, median; None for any.
        memory: Most MiB of the process; None for any.
    """

    latency: float | None = None
    memory: float | None = None

    def allows(self, figures: Figures) -> bool:
        """Whether an engine is fast and small enough."""
        return (self.latency is None or figures.ms <= self.latency) and (
            self.memory is None or figures.mib <= self.memory
        )

    @property
    def is_open(self) -> bool:
        """Whether nothing is asked."""
        return self.latency is None and self.memory is None


def read_wish(text: str | None) -> Wish:
    """Read latency=MILLISECONDS,memory=MIB, of which one may be left out.

    Raises:
        InputError: it is not written so, or a number is not above 0.
    """
    found: dict[str, float] = {}
    for part in (text or "").split(",") if text is not None else ():
        name, _, number = (word.strip() for word in part.partition("="))
        try:
            if name not in ("latency", "memory") or name in found:
                raise ValueError(name)
            found[name] = float(number)
            if not found[name] > 0:
                raise ValueError(number)
        except ValueError:
            raise InputError(
                f"--fit {text}: expected latency=MILLISECONDS,memory=MIB or one of both, such as "
                f"latency=120,memory=900, got {part.strip()[:40]!r}."
            ) from None
    return Wish(**found)


def choices(legal: Sequence[str], kv: Sequence[str], *, calibrated: bool) -> dict[str, list[str]]:
    """Return the precisions that each part may have, the finest first.

    Args:
        legal: Precisions of the target.
        kv: Formats of keys and values that the target has.
        calibrated: Whether there is a calibration: then the fitted methods stand for the plain.
    """
    eight, four = ("int8_sq", "int4_awq") if calibrated else ("int8", "int4")
    weights = [name for name in (FLOAT, "int8_wo", eight, four) if name in legal]
    vision = [name for name in weights if name != four]
    kept = [name for name in kv if name == "auto" or calibrated]
    return dict(zip(PARTS, (vision, vision, weights, weights, weights, kept), strict=True))


def finest(options: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """Return the combination that nothing is lost by."""
    return {part: names[0] for part, names in options.items()}


def alone(options: Mapping[str, Sequence[str]]) -> Iterator[tuple[str, str, Combination]]:
    """Yield part, precision and the combination in which that part alone is not the finest."""
    for part, names in options.items():
        for name in names[1:]:
            yield part, name, {**finest(options), part: name}


def spell(parts: Combination) -> str:
    """Write a combination as --precision takes it."""
    bases = {"vision_ends": parts["vision"], "kv": "auto"}
    text = f"{parts['vision']}/{parts['attention']}"
    for part in ("vision_ends", "mlp", "text_head", "kv"):
        if parts[part] != bases.get(part, parts["attention"]):
            text += f",{part}={parts[part]}"
    return text


@dataclass(frozen=True)
class Candidate:
    """A combination and what it is expected to cost."""

    parts: Combination
    figures: Figures

    @property
    def precision(self) -> str:
        """As --precision takes it."""
        return spell(self.parts)


def predict(
    options: Mapping[str, Sequence[str]],
    base: Figures,
    measured: Mapping[tuple[str, str], Figures],
) -> list[Candidate]:
    """Return every combination with the sum of what its parts change, measured alone.

    Args:
        options: As of `choices`.
        base: Of the finest combination.
        measured: (part, precision) -> figures of the engine in which that part alone is changed.
    """
    found = []
    for names in product(*options.values()):
        parts = dict(zip(options, names, strict=True))
        figures = base
        for pair in parts.items():
            if pair in measured:
                figures = figures.plus(measured[pair].minus(base))
        found.append(Candidate(parts, figures))
    return found


def pareto(candidates: Sequence[Candidate], wish: Wish) -> list[Candidate]:
    """Return those that no other one beats in loss and in what is wished for, by time.

    Without a wish time counts; memory counts only where it is asked for.
    """
    by_time = wish.memory is None or wish.latency is not None
    counts = [True, by_time, wish.memory is not None]
    table = np.array([candidate.figures for candidate in candidates])[:, counts]
    front = []
    for candidate, figures in zip(candidates, table, strict=True):
        no_worse = (table <= figures).all(axis=1)
        if not (no_worse & (table < figures).any(axis=1)).any():
            front.append(candidate)
    return sorted(front, key=lambda candidate: candidate.figures.ms)


def ranked(candidates: Sequence[Candidate], wish: Wish, most_loss: float) -> list[Candidate]:
    """Return the candidates that a wish allows, the one to try first at the front.

    With a wish, the closest to the reference; without, the fastest. None that loses `most_loss` or
    more is among them: what a combination that failed the gate has taught.
    """
    fit = [of for of in candidates if wish.allows(of.figures) and of.figures.loss < most_loss]

    def key(candidate: Candidate) -> tuple[float, float]:
        loss, ms, _ = candidate.figures
        return (ms, loss) if wish.is_open else (loss, ms)

    return sorted(fit, key=key)
