"""Whether an engine's plans are close enough to those of the engine that it is compared with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from autovla_rt.errors import InputError

Record = dict[str, Any]


@dataclass(frozen=True)
class Limit:
    """One threshold.

    Attributes:
        value: The default.
        at_most: Whether it is the most or the least.
        meaning: For people.
        read: Finds the figure in a summary (`summarise`); KeyError where it has none.
    """

    value: float
    at_most: bool
    meaning: str
    read: Callable[[Record], float]


LIMITS = {
    "scenes": Limit(
        50,
        at_most=False,
        meaning="scenes that were compared: means over fewer say little",
        read=lambda summary: summary["against"]["scenes"],
    ),
    "ade_increase": Limit(
        0.05,
        at_most=True,
        meaning="increase of the mean 5 s ADE, as a share of the reference's",
        read=lambda summary: summary["against"]["increase"]["ade_5s"]["share"][0],
    ),
    "apart": Limit(
        1.0,
        at_most=True,
        meaning="mean 5 s ADE between both engines' plans, metres",
        read=lambda summary: summary["against"]["apart"]["ade_5s"]["mean"][0],
    ),
    "mode_agreement": Limit(
        0.98,
        at_most=False,
        meaning="share of scenes that both answer in the same mode",
        read=lambda summary: summary["against"]["same_mode"][0],
    ),
    "action_kl": Limit(
        0.1,
        at_most=True,
        meaning="mean KL of the actions' distributions, nats, both given the reference's answer",
        read=lambda summary: summary["against"]["action_kl"]["mean"][0],
    ),
    "vision_cosine": Limit(
        0.98,
        at_most=False,
        meaning="mean cosine of the visual tokens",
        read=lambda summary: summary["against"]["cosine"]["vision"]["mean"],
    ),
    "language_cosine": Limit(
        0.98,
        at_most=False,
        meaning="mean cosine of the logits that actions are chosen from",
        read=lambda summary: summary["against"]["cosine"]["language"]["mean"],
    ),
}
"""The gate, in the order in which it is told."""


@dataclass(frozen=True)
class Check:
    """One threshold and what was measured.

    Attributes:
        measured: None where the scenes have no such figure (no truth); it does not count then.
    """

    name: str
    limit: float
    measured: float | None

    @property
    def passed(self) -> bool:
        """Whether the figure keeps within its limit."""
        if self.measured is None:
            return True
        within = self.measured <= self.limit
        return within if LIMITS[self.name].at_most else self.measured >= self.limit

    def as_dict(self) -> Record:
        """Plain containers, ready for JSON."""
        return {
            "name": self.name,
            "meaning": LIMITS[self.name].meaning,
            "limit": self.limit,
            "at_most": LIMITS[self.name].at_most,
            "measured": self.measured,
            "passed": self.passed,
        }


def read_limits(text: str | None) -> dict[str, float]:
    """Read NAME=NUMBER,... over the defaults.

    Raises:
        InputError: a name is unknown or a number is none.
    """
    limits = {name: limit.value for name, limit in LIMITS.items()}
    for part in (text or "").split(","):
        name, _, number = (word.strip() for word in part.partition("="))
        if not part.strip():
            continue
        try:
            if name not in limits:
                raise ValueError(name)
            limits[name] = float(number)
        except ValueError:
            raise InputError(
                f"--gate {part.strip()}: expected NAME=NUMBER with one of the names "
                f"{', '.join(LIMITS)}, such as ade_increase=0.02."
            ) from None
    return limits


def judge(summary: Record, limits: Mapping[str, float]) -> list[Check]:
    """Hold a summary against the limits."""
    checks = []
    for name, limit in limits.items():
        try:
            measured = float(LIMITS[name].read(summary))
        except (KeyError, IndexError):
            measured = None
        checks.append(Check(name, limit, measured))
    return checks
