"""An evaluation's main figures in words, for the terminal and the page alike.

Intervals are 95 %, over scenes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from autovla_rt.bootstrap import interval_text

Record = dict[str, Any]

DISPLACEMENTS = ("metres", "engine", "95th percentile", "worst", "reference", "increase")
CHECKS = ("what", "measured", "limit", "within")


def displacements_told(summary: Record) -> Iterator[list[str]]:
    """Yield rows of `DISPLACEMENTS`; none without truth."""
    against = summary.get("against", {})
    for key, of in summary.get("truth", {}).items():
        theirs = against.get("truth", {}).get(key)
        share = against.get("increase", {}).get(key, {}).get("share")
        kind, _, horizon = key.partition("_")
        yield [
            f"{kind.upper()} {horizon}",
            interval_text(of["mean"]),
            f"{of['p95']:.3g}",
            f"{of['worst']:.3g}",
            interval_text(theirs["mean"]) if theirs else "",
            percent_text(share) if share else "",
        ]


def agreement_told(against: Record) -> dict[str, str]:
    """Return how near two engines are, by what is compared."""
    told = {
        "ADE between both plans over 5 s": interval_text(against["apart"]["ade_5s"]["mean"], " m"),
        "same mode": percent_text(against["same_mode"]),
        "same plan": percent_text(against["same_plan"]),
        "same action, given the reference's answer": percent_text(against["same_action"]),
        "KL of actions": interval_text(against["action_kl"]["mean"], " nats"),
    }
    for name, what in {"decision_kl": "the choice of mode", "text_kl": "reasoning's text"}.items():
        if name in against:
            told[f"KL of {what}"] = interval_text(against[name]["mean"], " nats")
    if "reasoning" in against:
        reasoning = against["reasoning"]
        who = f"of {reasoning['scenes']} scenes that both reason in"
        told[f"same reasoning, {who}"] = percent_text(reasoning["same"])
        told["reasoning that is the same from its begin"] = percent_text(
            reasoning["same_until_share"]
        )
    for part, of in against["cosine"].items():
        told[f"cosine, {part}"] = f"{of['mean']:.6f}, worst scene {of['worst']:.6f}"
    return told


def checks_told(gate: Record) -> Iterator[list[str]]:
    """Yield rows of `CHECKS`, the last cell "yes" or "no"."""
    for check in gate["checks"]:
        measured = "no figure" if check["measured"] is None else f"{check['measured']:.4g}"
        limit = f"{'≤' if check['at_most'] else '≥'} {check['limit']:g}"
        yield [check["meaning"], measured, limit, "yes" if check["passed"] else "no"]


def verdict_told(gate: Record) -> str:
    """Return whether the gate was passed."""
    return "passed" if gate["passed"] else "not passed"


def percent_text(values: Sequence[float]) -> str:
    """Return shares [mean, low, high] for people."""
    return interval_text([100 * value for value in values], " %")
