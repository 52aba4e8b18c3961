"""Measures what deadlines need: slow answers whose actions no draft foresees."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from autovla_rt.bundle import Bundle
from autovla_rt.runtime.decoding_options import Mode
from autovla_rt.runtime.device import device_name
from autovla_rt.runtime.latency import LatencyModel
from autovla_rt.runtime.sampling import Sampler, Sampling
from autovla_rt.runtime.scene import Request
from autovla_rt.runtime.timed_engine import EngineCall, open_timed
from autovla_rt.runtime.trace import Trace

WARM_UP = 5
THINKING_TOKENS = 24
BEFORE_PREFILL = ("image_decode", "preprocess", "vision", "prompt", "draft")


class ContrarySampler(Sampler):
    """Chooses actions by chance, so that no draft of them is ever right."""

    def choose(
        self,
        logits: NDArray[np.float32],
        candidate_ids: NDArray[np.int64],
        history: Sequence[int],
        *,
        stage: str,
    ) -> int:
        """Choose greedily, as ever, but any action."""
        index = super().choose(logits, candidate_ids, history, stage=stage)
        return int(self._generator.integers(len(logits))) if stage == "action" else index


def measure_latency(
    bundle: Bundle, request: Request, *, threads: int | None, requests: int
) -> LatencyModel:
    """Plan a request again and again, each time as slowly as it can get.

    Args:
        bundle: The engine.
        request: The request.
        threads: As for `Planner.load`.
        requests: How many count; a few more warm up.

    Raises:
        InputError: a frame or value is unusable or does not fit the engine.
        BundleError: the engine does not load.
        CapacityError: prompt and answer do not fit the KV cache.
    """
    planner, calls = open_timed(bundle, threads)
    mode: Mode = "slow" if bundle.manifest.use_cot else "auto"
    encode, prefill, tokens, actions = [], [], [], []
    by_rows: dict[int, list[float]] = defaultdict(list)
    for index in range(WARM_UP + requests):
        calls.clear()
        trace = Trace()
        prompted = planner.encode(request, trace)
        with trace.span("draft"):
            draft = planner.draft(request)
        decoded = planner.answer(
            prompted,
            sampler=ContrarySampler(Sampling(seed=index)),
            mode=mode,
            thinking_token_budget=THINKING_TOKENS,
            trace=trace,
            draft=draft,
        )
        with trace.span("trajectory"):
            planner.trajectory(decoded)
        if index < WARM_UP:
            continue
        stages = trace.stages_ms()
        encode.append(sum(stages[name] for name in BEFORE_PREFILL))
        prefill.append(stages["prefill"] + stages.get("decision", 0.0))
        actions.append(stages["actions"] + stages["trajectory"])
        tokens += _token_ms(calls, trace)
        for call in [call for call in calls if call.name == "pass"][1:]:
            by_rows[call.rows].append(call.ms)
    p99 = [float(np.percentile(of, 99)) if of else 0.0 for of in (encode, prefill, tokens, actions)]
    return LatencyModel(
        engine_sha256=bundle.identity,
        device=device_name(),
        threads=threads,
        requests=requests,
        encode_ms=p99[0],
        prefill_ms=p99[1],
        token_ms=p99[2],
        actions_ms=p99[3],
        pass_ms={rows: float(np.median(of)) for rows, of in sorted(by_rows.items())},
    )


def _token_ms(calls: Sequence[EngineCall], trace: Trace) -> list[float]:
    """Return the milliseconds from one pass of the reasoning to the next."""
    for span in trace.spans:
        if span.name == "reasoning":
            starts = [
                call.start_ns
                for call in calls
                if call.name == "pass" and span.start_ns <= call.start_ns <= span.end_ns
            ]
            return [(b - a) / 1e6 for a, b in pairwise(starts)]
    return []
