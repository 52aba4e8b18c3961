"""How long plans of the miniature take: streamed, and before a deadline.

    python bench/latency.py stream ENGINE [--plans 1000] [--threads 1]
    python bench/latency.py deadlines ENGINE [--scenes 500] [--threads 1]

`stream` measures fast plans of drives through the miniature's world (the expert drives), with the
longest drafts and with drafts as long as pays, in turn, request by request. `deadlines` plans each
of so many unseen scenes before every deadline, slow forced, in turn. Both measure first what
deadlines need (`autovla-rt profile --save`), in the same process. Run them on an idle machine.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Iterator
from itertools import count, islice
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
from drive_requests import TICK, drive_requests
from miniature import FIRST_SEED, scene_request

from autovla_rt.bootstrap import mean_interval
from autovla_rt.bundle import Bundle, load_bundle
from autovla_rt.demo.scenes import record_scene
from autovla_rt.errors import InputError
from autovla_rt.runtime.deadline import Deadline
from autovla_rt.runtime.device import describe_device
from autovla_rt.runtime.latency import LatencyModel
from autovla_rt.runtime.latency_measurement import measure_latency
from autovla_rt.runtime.planner import Planner
from autovla_rt.runtime.profile import percentiles
from autovla_rt.runtime.scene import Request
from autovla_rt.runtime.stream import Stream
from autovla_rt.runtime.timed_engine import open_timed

Record = dict[str, Any]

DRIVE_SEED = 3_000_000_000
DEADLINES_MS = (50, 75, 100, 150, 250, 500, 1000)
WARM_UP = 40
MEASURED = 100


def stream(bundle: Bundle, latency: LatencyModel, plans: int) -> Record:
    """Measure streamed fast plans."""
    timed = {
        "longest drafts": open_timed(bundle, latency.threads),
        "drafts that pay": open_timed(bundle, latency.threads),
    }
    pass_ms = {"longest drafts": {}, "drafts that pay": latency.pass_ms}
    found: dict[str, list[Record]] = {name: [] for name in timed}
    asked = islice(_drives(), WARM_UP + plans)
    streams: dict[str, Stream] = {}
    for tick, request in asked:
        for name, (planner, calls) in timed.items():
            if tick == 0:
                streams[name] = Stream(planner, pass_ms=pass_ms[name])
            calls.clear()
            start = perf_counter()
            plan = streams[name].plan(request, time=TICK * tick, mode="fast")
            ms = (perf_counter() - start) * 1e3
            engine_ms = sum(call.ms for call in calls)
            images_ms = plan.stages_ms["image_decode"] + plan.stages_ms["preprocess"]
            parts = {
                "ms": ms,
                "engine ms": engine_ms,
                "outside": 1 - engine_ms / ms,
                "outside engine and images": 1 - (engine_ms + images_ms) / ms,
            }
            stages = {f"{name} ms": value for name, value in plan.stages_ms.items()}
            found[name].append({**parts, "passes": plan.forward_passes, **stages})
    return {
        name: {
            key: percentiles([record[key] for record in records[WARM_UP:]]) for key in records[0]
        }
        for name, records in found.items()
    }


def _drives() -> Iterator[tuple[int, Request]]:
    """Yield the requests of drives with their numbers in their drive."""
    for seed in count(DRIVE_SEED):
        yield from enumerate(drive_requests(seed))


def deadlines(bundle: Bundle, latency: LatencyModel, scenes: int) -> Record:
    """Plan scenes before deadlines."""
    planner = Planner.load(bundle.folder, threads=latency.threads)
    found: dict[int, list[Record]] = {deadline_ms: [] for deadline_ms in DEADLINES_MS}
    for seed in range(FIRST_SEED, FIRST_SEED + scenes):
        scene = record_scene(seed)
        request = scene_request(scene)
        for deadline_ms, records in found.items():
            try:
                deadline = Deadline(deadline_ms, latency)
            except InputError:
                continue
            start = perf_counter()
            plan = planner.plan(request, mode="slow", deadline=deadline)
            ms = (perf_counter() - start) * 1e3
            distance = np.hypot(*(np.array(plan.trajectory) - scene.trajectory)[:, :2].T)
            records.append(
                {
                    "ms": ms,
                    "tokens": plan.thinking_tokens,
                    "ade": float(distance.mean()),
                    "reason": plan.finish_reason,
                }
            )
    return {
        f"{deadline_ms} ms": _before(deadline_ms, records) for deadline_ms, records in found.items()
    }


def _before(deadline_ms: int, records: list[Record]) -> Record | str:
    if not records:
        return "refused: below the least"
    late = [record["ms"] - deadline_ms for record in records if record["ms"] > deadline_ms]
    return {
        "plans": len(records),
        "missed": len(late),
        "latest by ms": max(late, default=0.0),
        "ms": percentiles([record["ms"] for record in records]),
        "thinking tokens": float(np.mean([record["tokens"] for record in records])),
        "reasoning ended by": dict(Counter(record["reason"] for record in records)),
        "ade": mean_interval([record["ade"] for record in records]),
    }


def main() -> None:
    """Read the arguments, measure, print the report as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, unit, number in (("stream", "plans", 1000), ("deadlines", "scenes", 500)):
        command = commands.add_parser(name)
        command.add_argument("engine", type=Path)
        command.add_argument(f"--{unit}", dest="count", type=int, default=number)
        command.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    bundle = load_bundle(arguments.engine)
    _, request = next(_drives())
    latency = measure_latency(bundle, request, threads=arguments.threads, requests=MEASURED)
    measure = stream if arguments.command == "stream" else deadlines
    table = measure(bundle, latency, arguments.count)
    report = {"device": describe_device(), "latency": latency.model_dump(), **table}
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
