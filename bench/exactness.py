"""Whether every speed-up leaves greedy plans as they are.

    python bench/exactness.py CHECKPOINT OUT.jsonl --precision int8 --drives 13

Answers the requests of drives through the miniature's world (the plain model drives; an engine for
other frames gets noise), fast and slow, with every speed-up alone and with all of them, and
compares what was said with what the plain decoder says: no prefix, no drafts, a pass for every
token that is chosen. Features of frames that were seen before are compared bit for bit. A
difference is counted as a tie where the two best logits lie within 1e-4 of each other. Every drive
is one line of OUT.jsonl; a run that was stopped goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from miniature import read
from noise import noise_requests, sees_the_world
from numpy.typing import NDArray

from autovla_rt.bundle import Bundle, load_bundle
from autovla_rt.demo.drive import Drive, DriveSettings, draw_drive_world
from autovla_rt.demo.drivers import Decision, WorldCameras, request_of
from autovla_rt.demo.world import World
from autovla_rt.demo.world_engine import build_world_engine
from autovla_rt.output_file import write_file
from autovla_rt.runtime.camera_encoder import Seen
from autovla_rt.runtime.decode import Decoded
from autovla_rt.runtime.decoding_options import Mode
from autovla_rt.runtime.draft import NO_DRAFT, Draft
from autovla_rt.runtime.engines import open_engines
from autovla_rt.runtime.planner import Planner, Prompted
from autovla_rt.runtime.sampling import Sampler, Sampling
from autovla_rt.runtime.scene import Request
from autovla_rt.runtime.stream import Stream
from autovla_rt.runtime.trace import Trace

FIRST_SEED = 2_800_000_000
TIE = 1e-4
TICK = 0.5
MODES: tuple[Mode, ...] = ("fast", "slow")
WAYS = ("prefix", "folded", "drafts", "all")


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


class BehindStream(Stream):
    """A stream whose drafts ride with the passes behind the prefill only."""

    def _draft(self, request: Request, time: float) -> Draft:
        return replace(super()._draft(request, time), in_prefill=False)


class Comparison:
    """One bundle, plain and with speed-ups, asked the requests of one drive."""

    def __init__(self, bundle: Bundle, *, threads: int, thinking_token_budget: int) -> None:
        vision, language = open_engines(bundle, threads, use_prefix=False)
        self.plain = Planner(bundle, vision, language)
        self.prefixed = Planner(bundle, vision, open_engines(bundle, threads)[1])
        self._budget = thinking_token_budget
        self.begin()

    def begin(self) -> None:
        """Begin another drive."""
        self._seen = Seen(12)
        self._drafts = {mode: BehindStream(self.plain) for mode in MODES}
        self._all = {mode: Stream(self.prefixed) for mode in MODES}

    def ask(self, request: Request, time: float) -> dict[str, Any]:
        """Answer a request in every way; say what each cost, and where one differs."""
        prompted = self.plain.encode(request)
        seen = self.prefixed.encode(request, seen=self._seen)
        record: dict[str, Any] = {
            "features": {"same": bool(np.array_equal(prompted.embeddings, seen.embeddings))}
        }
        for mode in MODES:
            sampler = MarginSampler()
            options = {"mode": mode, "thinking_token_budget": self._budget}
            plain = self.plain.answer(prompted, sampler=sampler, **options)
            start = len(prompted.ids)
            record[mode] = {"plain": {"passes": plain.forward_passes}}
            for name, other in self._others(prompted, seen, request, mode, time):
                record[mode][name] = {
                    "passes": other.forward_passes,
                    **_difference(plain.output_ids, other.output_ids, start, sampler.margins),
                }
            record[mode]["p_slow"] = plain.p_slow
            record[mode]["trajectory"] = self.plain.trajectory(plain)
        return record

    def _others(
        self, prompted: Prompted, seen: Prompted, request: Request, mode: Mode, time: float
    ) -> Iterator[tuple[str, Decoded]]:
        """Answer with one speed-up at a time, and with all."""
        options: dict[str, Any] = {"mode": mode, "thinking_token_budget": self._budget}
        options["sampler"] = Sampler(Sampling())
        folded = Draft(mode="slow" if mode == "slow" else "fast", reasoning_ahead=0)
        streamed = {"request": request, "time": time, "trace": Trace()}
        yield "prefix", self.prefixed.answer(seen, draft=NO_DRAFT, **options)
        yield "folded", self.plain.answer(prompted, draft=folded, **options)
        yield "drafts", self._drafts[mode].answer(prompted, **streamed, **options)
        yield "all", self._all[mode].answer(seen, **streamed, **options)


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


def compare_drive(comparison: Comparison, seconds: float, seed: int) -> list[dict[str, Any]]:
    """Compare at every tick of a drive."""
    comparison.begin()
    driver = Comparing(comparison)
    for _ in Drive(draw_drive_world(seed), driver, DriveSettings(seconds, latency_ms=0.0)):
        pass
    return driver.records


def compare_noise(comparison: Comparison, seconds: float, seed: int) -> list[dict[str, Any]]:
    """Compare with requests of noise, every 0.5 s."""
    comparison.begin()
    asked = enumerate(islice(noise_requests(seed), round(seconds / TICK)))
    records = [comparison.ask(request, TICK * tick) for tick, request in asked]
    for record in records:
        for mode in MODES:
            del record[mode]["trajectory"]
    return records


def report(records: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Count differences, ties and passes by speed-up."""
    table: dict[str, Any] = {
        "requests": len(records),
        "features different": sum(not record["features"]["same"] for record in records),
    }
    for mode in MODES:
        for name in ("plain", *WAYS):
            found = [r[mode][name] for r in records]
            passes = [f["passes"] for f in found]
            margins = [f["margin"] for f in found if not f.get("same", True)]
            table[f"{mode}, {name}"] = {
                "different": len(margins),
                "ties": [margin for margin in margins if margin is not None and margin < TIE],
                "passes": dict(sorted(Counter(passes).items())),
                "mean passes": float(np.mean(passes)),
            }
    return table


def run(comparison: Comparison, out: Path, *, drives: int, seconds: float) -> dict[str, Any]:
    """Compare in so many drives, those that are not in `out` yet; return the report."""
    done = list(read(out)) if out.exists() else []
    write_file(out, "".join(json.dumps(line) + "\n" for line in done).encode())
    compare = compare_drive if sees_the_world(comparison.plain.bundle) else compare_noise
    with out.open("a", encoding="utf-8") as file:
        for seed in range(FIRST_SEED + len(done), FIRST_SEED + drives):
            line = {"seed": seed, "requests": compare(comparison, seconds, seed)}
            file.write(json.dumps(line) + "\n")
            file.flush()
    return report([r for line in read(out) for r in line["requests"]])


def main() -> None:
    """Read the arguments, compare, print the report as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", type=Path, help="or an engine, for any frame size")
    parser.add_argument("out", type=Path)
    parser.add_argument("--precision", default="int8")
    parser.add_argument("--target", default="cpu", help="cpu (ONNX Runtime) or x86 (OpenVINO)")
    parser.add_argument("--drives", type=int, default=13)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--thinking-token-budget", type=int, default=512)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        engine = arguments.checkpoint
        if not (engine / "engine.json").exists():
            engine = Path(scratch) / "engine"
            build_world_engine(arguments.checkpoint, engine, arguments.precision, arguments.target)
        comparison = Comparison(
            load_bundle(engine),
            threads=arguments.threads,
            thinking_token_budget=arguments.thinking_token_budget,
        )
        table = run(comparison, arguments.out, drives=arguments.drives, seconds=arguments.seconds)
    print(json.dumps(table, indent=1))


if __name__ == "__main__":
    main()
