"""Whether every speed-up leaves greedy plans as they are.

    python bench/exactness.py CHECKPOINT OUT.jsonl --precision int8 --drives 13

Plans the requests of drives through the miniature's world (the plain model drives), fast and slow,
with every speed-up alone and with all of them, and compares what was answered with what the plain
decoder answers: no prefix, no drafts, no cache, a pass for every token that is chosen. A difference
is counted as a tie where the two best logits lie within 1e-4 of each other. Every drive is one
line of OUT.jsonl; a run that was stopped goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from miniature import read
from numpy.typing import NDArray

from autovla_rt.bundle import Bundle, load_bundle
from autovla_rt.demo.drive import Drive, DriveSettings, draw_drive_world
from autovla_rt.demo.drivers import Decision, WorldCameras, request_of
from autovla_rt.demo.world import World
from autovla_rt.demo.world_engine import build_world_engine
from autovla_rt.output_file import write_file
from autovla_rt.runtime.backends.ort import OrtLanguage, OrtVision
from autovla_rt.runtime.camera_encoder import Seen
from autovla_rt.runtime.decode import Decoded, Mode, draft_from
from autovla_rt.runtime.draft import NO_DRAFT, Draft
from autovla_rt.runtime.motion import carried_on
from autovla_rt.runtime.planner import Planner
from autovla_rt.runtime.sampling import Sampler, Sampling
from autovla_rt.runtime.scene import Request
from autovla_rt.runtime.stream import Stream

FIRST_SEED = 2_800_000_000
TIE = 1e-4
MODES: tuple[Mode, ...] = ("fast", "slow")


class MarginSampler(Sampler):
    """A greedy sampler that notes how far the best logit lies above the next, by position."""

    def __init__(self) -> None:
        super().__init__(Sampling())
        self.margins: dict[int, float] = {}

    def choose(
        self,
        logits: NDArray[np.float32],
        candidate_ids: NDArray[np.int64],
        history: Sequence[int],
        *,
        stage: str,
    ) -> int:
        """Choose the best one."""
        second, best = np.partition(logits, -2)[-2:]
        self.margins[len(history)] = float(best - second)
        return super().choose(logits, candidate_ids, history, stage=stage)


class Comparison:
    """One bundle, plain and with speed-ups, asked the requests of one drive."""

    def __init__(self, bundle: Bundle) -> None:
        vision = OrtVision(bundle, 1)
        self.plain = Planner(bundle, vision, OrtLanguage(bundle, 1, use_prefix=False))
        self.fast = Planner(bundle, vision, OrtLanguage(bundle, 1))
        self._dt = bundle.manifest.actions.dt
        self.begin()

    def begin(self) -> None:
        """Begin another drive."""
        self._seen = Seen(12)
        self._streams = {mode: Stream(self.fast) for mode in MODES}
        self._last: dict[Mode, tuple[float, Decoded]] = {}

    def ask(self, request: Request, time: float) -> dict[str, Any]:
        """Answer a request in every way; say what each cost, and where one differs."""
        record: dict[str, Any] = {}
        for mode in MODES:
            prompted = self.plain.encode(request)
            sampler = MarginSampler()
            plain = self.plain.answer(prompted, sampler=sampler, mode=mode)
            start = len(prompted.ids)
            record[mode] = {"plain": {"passes": plain.forward_passes}}
            for name, other in self._others(request, mode, time):
                record[mode][name] = {
                    "passes": other.forward_passes,
                    **_difference(plain.output_ids, other.output_ids, start, sampler.margins),
                }
            plan = self._streams[mode].plan(request, time=time, mode=mode)
            same = tuple(plan.action_tokens) == plain.action_ids and (
                plan.reasoning == plain.reasoning
            )
            record[mode]["all"] = {"passes": plan.forward_passes, "same": same}
            self._last[mode] = time, plain
            record[mode]["p_slow"] = plain.p_slow
            record[mode]["trajectory"] = self.plain.trajectory(plain)
        return record

    def _others(self, request: Request, mode: Mode, time: float) -> Iterator[tuple[str, Decoded]]:
        """Answer with one speed-up at a time."""
        draft = self._draft(request, mode, time)

        def answer(planner: Planner, draft: Draft, seen: Seen | None = None) -> Decoded:
            prompted = planner.encode(request, seen=seen)
            return planner.answer(prompted, sampler=Sampler(Sampling()), mode=mode, draft=draft)

        yield "prefix", answer(self.fast, NO_DRAFT)
        yield "cache", answer(self.plain, NO_DRAFT, self._seen)
        yield "folded", answer(self.plain, Draft(mode=mode, reasoning_ahead=0))
        yield "drafts", answer(self.plain, replace(draft, in_prefill=False))

    def _draft(self, request: Request, mode: Mode, time: float) -> Draft:
        if mode not in self._last:
            return self.plain.draft(request)
        before, decoded = self._last[mode]
        likely = carried_on(self.plain.trajectory(decoded), self._dt, time - before)
        return draft_from(decoded, self.plain.actions_of(likely))


def _difference(
    plain: Sequence[int], other: Sequence[int], start: int, margins: dict[int, float]
) -> dict[str, Any]:
    """Say whether two answers are the same, and by how little the first difference was decided."""
    for position, (a, b) in enumerate(zip(plain, other, strict=False)):
        if a != b:
            return {"same": False, "margin": margins.get(start + position)}
    return {"same": len(plain) == len(other)}


class Comparing:
    """A driver that follows the plain model, and compares at every tick."""

    def __init__(self, comparison: Comparison) -> None:
        self._comparison = comparison
        self._cameras = WorldCameras()
        self.records: list[dict[str, Any]] = []

    def decide(self, moments: Sequence[World]) -> Decision:
        """Return the plain model's plan."""
        now = moments[-1]
        request = request_of(now, self._cameras.look(moments))
        record = self._comparison.ask(request, now.time)
        mode = "slow" if record["fast"]["p_slow"] > 0.5 else "fast"
        trajectory = record[mode]["trajectory"]
        for mode in MODES:
            del record[mode]["trajectory"]
        self.records.append(record)
        return Decision(trajectory, 0.0)


def compare_drive(comparison: Comparison, seed: int) -> list[dict[str, Any]]:
    """Compare at every tick of a drive."""
    comparison.begin()
    driver = Comparing(comparison)
    for _ in Drive(draw_drive_world(seed), driver, DriveSettings(latency_ms=0.0)):
        pass
    return driver.records


def report(records: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Count differences, ties and passes by speed-up."""
    table: dict[str, Any] = {}
    for mode in MODES:
        for name in ("plain", "prefix", "cache", "folded", "drafts", "all"):
            found = [r[mode][name] for r in records]
            passes = [f["passes"] for f in found]
            different = [f for f in found if not f.get("same", True)]
            ties = [f for f in different if (f.get("margin") or 1.0) < TIE]
            table[f"{mode}, {name}"] = {
                "different": len(different),
                "of them ties": len(ties),
                "passes": dict(sorted(Counter(passes).items())),
                "mean passes": float(np.mean(passes)),
            }
    return {"requests": len(records), **table}


def main() -> None:
    """Read the arguments, compare, print the report as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--precision", default="int8")
    parser.add_argument("--drives", type=int, default=15)
    arguments = parser.parse_args()
    done = list(read(arguments.out)) if arguments.out.exists() else []
    write_file(arguments.out, "".join(json.dumps(line) + "\n" for line in done).encode())
    with tempfile.TemporaryDirectory() as scratch:
        engine = Path(scratch) / "engine"
        build_world_engine(arguments.checkpoint, engine, arguments.precision)
        comparison = Comparison(load_bundle(engine))
        with arguments.out.open("a", encoding="utf-8") as file:
            for index in range(len(done), arguments.drives):
                seed = FIRST_SEED + index
                line = {"seed": seed, "requests": compare_drive(comparison, seed)}
                file.write(json.dumps(line) + "\n")
                file.flush()
    records = [r for line in read(arguments.out) for r in line["requests"]]
    print(json.dumps(report(records), indent=1))


if __name__ == "__main__":
    main()
