"""Latency of an engine, measured: by stage, by engine call, with everything that it depends on."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import repeat
from time import perf_counter_ns
from typing import Any

import numpy as np

from autovla_rt.bundle import Bundle
from autovla_rt.config import CAMERAS, FRAMES_PER_CAMERA
from autovla_rt.errors import InputError
from autovla_rt.machine import peak_memory
from autovla_rt.runtime.decoding_options import DEFAULT_THINKING_TOKEN_BUDGET, Mode
from autovla_rt.runtime.device import describe_device
from autovla_rt.runtime.draft import Refinement
from autovla_rt.runtime.frame_source import describe, read_image, to_rgb
from autovla_rt.runtime.plan import Plan, describe_engine
from autovla_rt.runtime.scene import Request
from autovla_rt.runtime.stream import Stream
from autovla_rt.runtime.timed_engine import EngineCall, open_timed
from autovla_rt.runtime.trace import Span, Trace

TICK = 0.5
"""Seconds between two requests of a stream, as between two frames."""
PIXELS_PER_TICK = 2


@dataclass(frozen=True)
class ProfileSettings:
    """What is measured.

    Attributes:
        requests: Requests that count.
        warm_up: Requests before them, which do not.
        threads: As for `Planner.load`.
        streamed: Whether requests follow each other in a drive (see `moving`), or each is the
            first.
        mode: As for `Planner.plan`.
        thinking_token_budget: As for `Planner.plan`.
        refinement: As for `Planner.plan`.
        pass_ms: As for `Stream`.
    """

    requests: int = 50
    warm_up: int = 5
    threads: int | None = None
    streamed: bool = False
    mode: Mode = "auto"
    thinking_token_budget: int = DEFAULT_THINKING_TOKEN_BUDGET
    refinement: Refinement | None = None
    pass_ms: Mapping[int, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.requests < 1 or self.warm_up < 0:
            raise InputError(
                "profile: expected one request or more and a warm-up from 0 on, got "
                f"{self.requests} and {self.warm_up}."
            )


@dataclass(frozen=True)
class Measured:
    """One request: its plan, the spans of its stages, the calls of its engines, what it reused."""

    plan: Plan
    spans: tuple[Span, ...]
    calls: tuple[EngineCall, ...]
    start_ns: int
    end_ns: int
    reused_pairs: int
    reused_tokens: int

    @property
    def ms(self) -> float:
        """Milliseconds from frames to plan."""
        return (self.end_ns - self.start_ns) / 1e6


def profile(bundle: Bundle, request: Request, settings: ProfileSettings) -> list[Measured]:
    """Plan a request again and again, and measure each time.

    Args:
        bundle: The engine.
        request: The request; a stream's frames move on from it.
        settings: How often, and how.

    Raises:
        InputError: a frame or value is unusable or does not fit the engine.
        BundleError: the engine does not load.
        CapacityError: prompt and answer do not fit the KV cache.
    """
    planner, calls = open_timed(bundle, settings.threads)
    stream = Stream(planner, pass_ms=settings.pass_ms)
    measured = []
    requests = moving(request) if settings.streamed else repeat(request)
    for index in range(settings.warm_up + settings.requests):
        asked, trace, hits = next(requests), Trace(), stream.seen.features.hits
        calls.clear()
        options: dict[str, Any] = {
            "mode": settings.mode,
            "thinking_token_budget": settings.thinking_token_budget,
            "refinement": settings.refinement,
            "trace": trace,
        }
        start = perf_counter_ns()
        if settings.streamed:
            plan = stream.plan(asked, time=TICK * index, **options)
        else:
            plan = planner.plan(asked, **options)
        end = perf_counter_ns()
        if index >= settings.warm_up:
            reused = stream.seen.features.hits - hits
            spans, tokens = tuple(trace.spans), planner.reused_tokens
            measured.append(Measured(plan, spans, tuple(calls), start, end, reused, tokens))
    return measured


def moving(request: Request) -> Iterator[Request]:
    """Yield requests whose frames move on by one each time, as those of a drive do.

    The frames come again in turn, every one shifted a little to the side, so that no frame is
    equal to another; the numbers stay. So half of the pairs of frames are known from the third
    request on, and the plan before is a draft of the next. How the scene changes is made up: drafts
    of a real drive are accepted more or less often.
    """
    bases = {
        camera: [
            np.asarray(to_rgb(read_image(frame, name), name))
            for index, frame in enumerate(request.frames[camera])
            for name in (describe(frame, camera, index),)
        ]
        for camera in CAMERAS
    }
    first = 0
    while True:
        frames = {
            camera: [
                np.roll(of[tick % len(of)], PIXELS_PER_TICK * tick, axis=1)
                for tick in range(first, first + FRAMES_PER_CAMERA)
            ]
            for camera, of in bases.items()
        }
        yield replace(request, frames=frames)
        first += 1


def summary(
    measured: Sequence[Measured], bundle: Bundle, settings: ProfileSettings
) -> dict[str, Any]:
    """Sum up: percentiles in milliseconds, rates, acceptance and the protocol, ready for JSON."""
    plans = [m.plan for m in measured]
    stages = list(dict.fromkeys(stage for plan in plans for stage in plan.stages_ms))
    passes = [[call for call in m.calls if call.name == "pass"] for m in measured]
    engine_ms = [sum(call.ms for call in m.calls) for m in measured]
    drafted, accepted = sum(p.drafted for p in plans), sum(p.accepted for p in plans)
    by_rows: dict[int, list[float]] = defaultdict(list)
    for call in (call for of in passes for call in of):
        by_rows[call.rows].append(call.ms)
    return {
        "engine": describe_engine(bundle.manifest, bundle.identity),
        "device": describe_device(),
        "protocol": asdict(settings),
        "request_ms": percentiles([m.ms for m in measured]),
        "stages_ms": {
            stage: percentiles([plan.stages_ms.get(stage, 0.0) for plan in plans])
            for stage in stages
        },
        "outside_engine_share": percentiles(
            [1 - engine / m.ms for engine, m in zip(engine_ms, measured, strict=True)]
        ),
        "modes": dict(Counter(plan.mode for plan in plans)),
        "forward_passes": {
            **percentiles([plan.forward_passes for plan in plans]),
            "distribution": dict(sorted(Counter(plan.forward_passes for plan in plans).items())),
        },
        "thinking_tokens": percentiles([plan.thinking_tokens for plan in plans]),
        "prefill_tokens_per_s": percentiles([_prefill_rate(m) for m in measured]),
        "generation_tokens_per_s": percentiles([_generation_rate(m) for m in measured]),
        "drafted_tokens": drafted,
        "accepted_tokens": accepted,
        "acceptance": accepted / drafted if drafted else None,
        "reused_tokens": percentiles([m.reused_tokens for m in measured]),
        "reused_frame_pairs": percentiles([m.reused_pairs for m in measured]),
        "passes_ms": {rows: percentiles(of) for rows, of in sorted(by_rows.items())},
        "peak_rss_bytes": peak_memory(),
    }


def percentiles(values: Iterable[float]) -> dict[str, float]:
    """Return count, p50, p90, p99 (linear between values), greatest, and jitter (p99 - p50)."""
    array = np.fromiter(values, np.float64)
    p50, p90, p99 = (float(value) for value in np.percentile(array, [50, 90, 99]))
    return {
        "n": len(array),
        "p50": p50,
        "p90": p90,
        "p99": p99,
        "max": float(array.max()),
        "jitter": p99 - p50,
    }


def chrome_trace(measured: Sequence[Measured]) -> dict[str, Any]:
    """Return the requests as a trace of chrome://tracing: stages in one row, calls in another."""
    events = [
        _event("request", "request", m.start_ns, m.end_ns, mode=m.plan.mode) for m in measured
    ]
    for m in measured:
        events += [_event(s.name, "stage", s.start_ns, s.end_ns) for s in m.spans]
        events += [
            _event(call.name, "engine", call.start_ns, call.end_ns, rows=call.rows)
            for call in m.calls
        ]
    return {"traceEvents": events, "displayTimeUnit": "ms"}


def _prefill_rate(measured: Measured) -> float:
    """Return the tokens of the prompt by second, from the first pass of a part of it on."""
    names = [call.name for call in measured.calls]
    until = names.index("pass") + 1
    calls = [call for call in measured.calls[:until] if call.name in ("pass", "pass ahead")]
    return sum(call.rows for call in calls) / (calls[-1].end_ns - calls[0].start_ns) * 1e9


def _generation_rate(measured: Measured) -> float:
    """Return the tokens of the answer by second, from the end of the prefill on."""
    end = next(call.end_ns for call in measured.calls if call.name == "pass")
    last = max(call.end_ns for call in measured.calls)
    tokens = measured.plan.thinking_tokens + len(measured.plan.action_tokens)
    return tokens / max(last - end, 1) * 1e9


def _event(name: str, row: str, start_ns: int, end_ns: int, **details: Any) -> dict[str, Any]:
    rows = ("request", "stage", "engine")
    times = {"ts": start_ns / 1e3, "dur": (end_ns - start_ns) / 1e3}
    place = {"cat": row, "ph": "X", "pid": 1, "tid": rows.index(row)}
    return {"name": name, **place, **times, "args": details}
