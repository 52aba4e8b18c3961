"""Passes that a plan takes in a drive, which guesses are right, and what a refinement loses.

    python bench/drafts.py ENGINE OUT.jsonl --drives 50

The exact model drives through the miniature's world for 10 s. At every tick each way to decode
plans, too, as a stream of its own; all see the same requests, so they pair. A plan is judged
against the expert's from the same moment (ADE, FDE) and by its driving score when followed for 5 s.
Every drive is one line of OUT.jsonl; a run that was stopped goes on where it was. Intervals are
95 %, from 10,000 bootstrap resamples of drives: ticks of one drive are alike.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import miniature
import numpy as np

from autovla_rt.bootstrap import difference_interval, mean_interval
from autovla_rt.demo.drive import Drive, DriveSettings, draw_drive_world
from autovla_rt.demo.drivers import Decision, WorldCameras, request_of
from autovla_rt.demo.plan_score import PlanJudge
from autovla_rt.demo.scenes import expert_plan
from autovla_rt.demo.world import World
from autovla_rt.runtime.camera_encoder import Seen
from autovla_rt.runtime.decode import Decoded
from autovla_rt.runtime.decoding_options import Mode
from autovla_rt.runtime.draft import Refinement
from autovla_rt.runtime.planner import Planner
from autovla_rt.runtime.sampling import Sampler, Sampling
from autovla_rt.runtime.stream import Stream
from autovla_rt.runtime.trace import Trace

Record = dict[str, Any]

FIRST_SEED = 2_900_000_000
SECONDS = 10.0
EXACT = "exact"
WAYS: dict[str, tuple[Mode, Refinement | None]] = {
    EXACT: ("fast", None),
    **{f"refine:{k}": ("fast", Refinement(k)) for k in (1, 2, 3, 4, 6)},
    "refine:4:50": ("fast", Refinement(4, tolerance=0.5)),
    "refine:4:auto": ("fast", Refinement(4, certainty=1.0)),
    "exact, slow": ("slow", None),
}
MEASURES = ("ade", "fde", "score", "no_collision", "on_road")


class Comparing:
    """A driver that follows the exact fast plans and notes every way's."""

    def __init__(self, planner: Planner) -> None:
        self._planner = planner
        self._streams = {name: Stream(planner) for name in WAYS}
        self._cameras, self._seen = WorldCameras(), Seen(12)
        self.ticks: list[Record] = []

    def decide(self, moments: Sequence[World]) -> Decision:
        """Plan in every way."""
        now = moments[-1]
        request = request_of(now, self._cameras.look(moments))
        prompted = self._planner.encode(request, seen=self._seen)
        judge, truth = PlanJudge(now), expert_plan(now)
        record: Record = {}
        trajectories = {}
        for name, (mode, refinement) in WAYS.items():
            decoded = self._streams[name].answer(
                prompted,
                request,
                time=now.time,
                trace=Trace(),
                sampler=Sampler(Sampling()),
                mode=mode,
                refinement=refinement,
            )
            trajectories[name] = self._planner.trajectory(decoded)
            distance = np.hypot(*(trajectories[name] - truth)[:, :2].T)
            score = judge.score(trajectories[name])
            record[name] = {
                "passes": decoded.forward_passes,
                "ade": float(distance.mean()),
                "fde": float(distance[-1]),
                "score": score.score,
                "no_collision": score.no_collision,
                "on_road": score.on_road,
            }
            if refinement is None:
                record[name]["outcomes"] = outcomes(decoded, first=not self.ticks)
        self.ticks.append(record)
        return Decision(trajectories[EXACT], 0.0)


def outcomes(decoded: Decoded, *, first: bool) -> list[tuple[str, int, bool]]:
    """Return every guess that was reached, as (source, step of the plan or -1, right).

    A guess behind a wrong one is not reached. Text of the scaffold is left out; it is always right.
    """
    found = []
    for index, guess in enumerate(decoded.guesses):
        source = "own choices, corrected"
        if index == 0:
            source = "constant speed" if first else "plan before, carried on"
        for offset in range(min(guess.count, guess.right + 1)):
            step = guess.start + offset - decoded.first_action
            right = offset < guess.right
            if step >= 0:
                found.append((source, step, right))
            elif index > 0:
                found.append(("reasoning, looked up", -1, right))
    return found


def drive(engine: Path, seed: int) -> Record:
    """Drive one world."""
    planner, _ = miniature.load_engine(engine)
    driver = Comparing(planner)
    for _ in Drive(draw_drive_world(seed), driver, DriveSettings(SECONDS, latency_ms=0.0)):
        pass
    return {"seed": seed, "ticks": driver.ticks}


def report(drives: Sequence[Record]) -> Record:
    """Sum up by way to decode; differences are to exact fast plans, paired."""
    ticks = [tick for drive in drives for tick in drive["ticks"]]
    table: Record = {"drives": len(drives), "plans": len(ticks)}
    for name in WAYS:
        passes = [tick[name]["passes"] for tick in ticks]
        table[name] = {
            "passes": dict(sorted(Counter(passes).items())),
            "passes, mean": float(np.mean(passes)),
            "passes, p90": float(np.percentile(passes, 90)),
            "at most 9": float(np.mean(np.array(passes) <= 9)),
            **{key: mean_interval(_means(drives, name, key)) for key in MEASURES},
            **{
                f"{key}, difference": difference_interval(
                    _means(drives, name, key), _means(drives, EXACT, key)
                )
                for key in MEASURES
            },
        }
    for name in (name for name, (_, refinement) in WAYS.items() if refinement is None):
        tries = [tuple(outcome) for tick in ticks for outcome in tick[name]["outcomes"]]
        table[f"acceptance, {name}"] = acceptance(tries)
    return table


def acceptance(tries: Iterable[tuple[str, int, bool]]) -> Record:
    """Return by source and step: how many guesses were reached, and the share that was right."""
    reached, right = Counter[tuple[str, str]](), Counter[tuple[str, str]]()
    for source, step, is_right in tries:
        for key in ((source, str(step)), (source, "all")):
            reached[key] += 1
            right[key] += is_right
    table: Record = {}
    for source, step in sorted(reached, key=str):
        share = right[source, step] / reached[source, step]
        table.setdefault(source, {})[step] = [reached[source, step], round(share, 3)]
    return table


def _means(drives: Sequence[Record], name: str, key: str) -> list[float]:
    return [float(np.mean([tick[name][key] for tick in drive["ticks"]])) for drive in drives]


def main() -> None:
    """Read the arguments, drive, print the report as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("engine", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--drives", type=int, default=50)
    arguments = parser.parse_args()
    seeds = range(FIRST_SEED, FIRST_SEED + arguments.drives)
    work: Callable[[int], Record] = partial(drive, arguments.engine)
    miniature.run(work, seeds, arguments.out)
    print(json.dumps(report(list(miniature.read(arguments.out))), indent=1))


if __name__ == "__main__":
    main()
