"""What all scenes of an evaluation say together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from autovla_rt.bootstrap import difference_interval, mean_interval, ratio_interval

Record = dict[str, Any]


def summarise(records: Sequence[Record]) -> Record:
    """Return means with 95 % intervals over scenes (bootstrap), 95th percentiles and worst scenes.

    Keys are missing where no scene has them: no truth, no reference, no chain of thought.
    """
    summary: Record = {"scenes": len(records)}
    driven = [record for record in records if "truth" in record]
    if driven:
        summary["truth"] = _spreads(driven, lambda record: record["truth"])
    slow = [record["mode"] == "slow" for record in records]
    summary["slow_share"] = float(np.mean(slow))
    summary["thinking_tokens"] = float(np.mean([r["thinking_tokens"] for r in records]))
    compared = [record for record in records if "reference" in record]
    if compared:
        summary["against"] = _against(compared)
    return summary


def _against(records: Sequence[Record]) -> Record:
    found: Record = {"scenes": len(records)}
    driven = [record for record in records if "truth" in record]
    if driven:
        found["truth"] = _spreads(driven, lambda record: record["reference"]["truth"])
        found["increase"] = {}
        for key in driven[0]["truth"]:
            ours = [record["truth"][key] for record in driven]
            theirs = [record["reference"]["truth"][key] for record in driven]
            ratio = ratio_interval(ours, theirs)
            found["increase"][key] = {
                "metres": difference_interval(ours, theirs),
                "share": [round(value - 1, 4) for value in ratio],
            }
    found["apart"] = _spreads(records, lambda record: record["apart"])
    found["same_mode"] = mean_interval(record["same_mode"] for record in records)
    found["same_plan"] = mean_interval(record["same_plan"] for record in records)
    same = np.array([record["same_action"] for record in records], float)
    found["same_action"] = mean_interval(same.mean(axis=1))
    found["same_action_by_step"] = same.mean(axis=0).round(4).tolist()
    kl = np.array([record["action_kl"] for record in records])
    found["action_kl"] = _spread(kl.mean(axis=1))
    found["action_kl_by_step"] = kl.mean(axis=0).round(6).tolist()
    for name in ("decision_kl", "text_kl"):
        if values := [record[name] for record in records if name in record]:
            found[name] = _spread(values)
    reasoned = [record for record in records if "reasoning_tokens" in record]
    if reasoned:
        found["reasoning"] = _reasoning(reasoned)
    found["cosine"] = {
        part: _least([record["cosine"][part] for record in records])
        for part in records[0]["cosine"]
    }
    return found


def _reasoning(records: Sequence[Record]) -> Record:
    """Return how often both reason alike, and for how long where they do not."""
    places = [record["reasoning_differs_at"] for record in records]
    shares = [
        1.0 if place is None else place / max(record["reasoning_tokens"], 1)
        for place, record in zip(places, records, strict=True)
    ]
    return {
        "scenes": len(records),
        "same": mean_interval(place is None for place in places),
        "same_until_share": mean_interval(shares),
    }


def _spreads(records: Sequence[Record], values: Callable[[Record], dict[str, float]]) -> Record:
    keys = values(records[0])
    return {key: _spread([values(record)[key] for record in records]) for key in keys}


def _spread(values: Sequence[float] | np.ndarray[Any, Any]) -> Record:
    numbers = np.asarray(values, np.float64)
    return {
        "mean": mean_interval(numbers),
        "p95": round(float(np.percentile(numbers, 95)), 6),
        "worst": round(float(numbers.max()), 6),
    }


def _least(values: Sequence[float]) -> Record:
    return {"mean": round(float(np.mean(values)), 6), "worst": round(float(np.min(values)), 6)}
