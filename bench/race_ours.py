"""Our engines in the race: a request by itself, one of a stream, and both with refinement.

    python bench/race_ours.py WORK ENGINE [--threads 2] [--requests 1]

Prints what the peers' workers print (bench/peers/worker.py). With random weights every request has
the same answer, so a stream's drafts would all be right: here they are straight on at the request's
speed, which are not.
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from pathlib import Path
from typing import Any

from noise import noise_requests

from autovla_rt.runtime.camera_encoder import Seen
from autovla_rt.runtime.draft import Refinement
from autovla_rt.runtime.planner import Planner
from autovla_rt.runtime.sampling import Sampler, Sampling
from autovla_rt.runtime.scene import Request
from autovla_rt.runtime.trace import Trace

Way = Refinement | None
Record = dict[str, Any]

KEPT = 12
"""Frames and pairs that a stream keeps."""

STEADY = 3
"""Requests of a stream after which half of the pairs come again."""

REFINED = Refinement(4)


def ask(planner: Planner, request: Request, seen: Seen, ways: dict[str, Way]) -> list[Record]:
    """Answer a request in several ways; all are charged the encoding of the first."""
    records: list[Record] = []
    for name, refinement in ways.items():
        trace = Trace()
        start = time.perf_counter()
        prompted = planner.encode(request, trace, seen)
        encoded = time.perf_counter()
        with trace.span("draft"):
            draft = planner.draft(request)
        decoded = planner.answer(
            prompted,
            sampler=Sampler(Sampling()),
            trace=trace,
            draft=draft,
            mode="fast",
            refinement=refinement,
        )
        planner.trajectory(decoded)
        answered = time.perf_counter() - encoded
        prefill = trace.stages_ms()["prefill"] / 1e3
        record = {
            "way": name,
            "vision": records[0]["vision"] if records else encoded - start,
            "prefill": prefill,
            "decode": answered - prefill,
            "passes": decoded.forward_passes,
            "accepted": decoded.accepted,
        }
        records.append(record)
    return records


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("work", type=Path)
    parser.add_argument("engine")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--requests", type=int, default=1)
    given = parser.parse_args()
    start = time.perf_counter()
    planner = Planner.load(given.work / given.engine, threads=given.threads)
    load_s = time.perf_counter() - start
    requests = noise_requests(0)
    ask(planner, next(requests), Seen(0), {"warm-up": None})
    for _ in range(given.requests):
        records = ask(planner, next(requests), Seen(KEPT), {"cold": None, "cold, refined": REFINED})
        seen = Seen(KEPT)
        for _ in range(STEADY - 1):
            planner.encode(next(requests), seen=seen)
        ways = {"stream": None, "stream, refined": REFINED}
        for record in records + ask(planner, next(requests), seen, ways):
            print(json.dumps(record), flush=True)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(json.dumps({"load_s": load_s, "peak_rss_gib": peak}), flush=True)


if __name__ == "__main__":
    main()
