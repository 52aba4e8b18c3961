"""One request after another: what the last ones saw and planned makes the next one cheaper."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Unpack

import numpy as np

from autovla_rt.errors import InputError
from autovla_rt.runtime.camera_encoder import Seen
from autovla_rt.runtime.decode import Decoded, draft_from
from autovla_rt.runtime.decoding_options import DecodingOptions
from autovla_rt.runtime.draft import REASONING_AHEAD, Draft
from autovla_rt.runtime.draft_length import DraftLength
from autovla_rt.runtime.motion import Poses, carried_on
from autovla_rt.runtime.plan import Plan
from autovla_rt.runtime.planner import GREEDY, Planner, Prompted
from autovla_rt.runtime.sampling import Sampler, Sampling
from autovla_rt.runtime.scene import Request
from autovla_rt.runtime.trace import Trace

NOT_MEASURED: Mapping[int, float] = {}

REQUESTS_CACHED = 2
"""At 2 Hz two frames that were a pair come again as one two requests later."""


@dataclass(frozen=True)
class _Last:
    """What the next request starts from."""

    time: float
    decoded: Decoded
    trajectory: Poses


class Stream:
    """Plans the requests of a drive in the order of their times.

    Plans are those that the planner would make of each request alone; only passes and time differ
    (with a refinement the plan itself depends on the draft, and so on the plan before).
    Memory does not grow with the drive: the last plan, one request's frames and two requests'
    features are kept.

    Args:
        planner: The engine; nobody else may use it meanwhile.
        pass_ms: Measured milliseconds of a pass by its rows (`LatencyModel.pass_ms`): drafts are as
            long as pays. Empty takes the longest: fewest passes.
        cached_pairs: Pairs of frames whose features are kept, and frames that are kept resized (as
            they came, where a device resizes them: 6 MB for 1920x1080); None takes two requests'
            pairs, 0 none.

    Raises:
        InputError: `cached_pairs` is negative.
    """

    def __init__(
        self,
        planner: Planner,
        *,
        pass_ms: Mapping[int, float] = NOT_MEASURED,
        cached_pairs: int | None = None,
    ) -> None:
        manifest = planner.bundle.manifest
        if cached_pairs is None:
            cached_pairs = REQUESTS_CACHED * sum(camera.grid[0] for camera in manifest.cameras)
        self.seen = Seen(cached_pairs)
        self._planner = planner
        self._dt, self._steps = manifest.actions.dt, manifest.actions.num_poses
        self._actions_ahead = DraftLength(self._steps - 1, pass_ms)
        self._reasoning_ahead = DraftLength(REASONING_AHEAD, pass_ms)
        self._last: _Last | None = None

    def plan(
        self,
        request: Request,
        *,
        time: float,
        sampling: Sampling = GREEDY,
        trace: Trace | None = None,
        **options: Unpack[DecodingOptions],
    ) -> Plan:
        """Plan the next request.

        Args:
            request: The request.
            time: When its newest frames were taken, s; later than the last request's.
            sampling: How tokens are chosen.
            trace: Receives the spans of the request's stages.
            options: See `Decoding`.

        Raises:
            InputError: the time is not later than the last request's (`reset` begins anew), or as
                for `Planner.plan`.
            CapacityError: prompt and answer do not fit the KV cache.
        """
        self._require_later(time)
        self._planner.require_possible(**options)
        trace = trace or Trace()
        prompted = self._planner.encode(request, trace, self.seen)
        sampler = Sampler(sampling)
        decoded = self.answer(prompted, request, time=time, sampler=sampler, trace=trace, **options)
        assert self._last is not None
        return self._planner.assemble(decoded, self._last.trajectory, trace)

    def answer(
        self,
        prompted: Prompted,
        request: Request,
        *,
        time: float,
        sampler: Sampler,
        trace: Trace,
        **options: Unpack[DecodingOptions],
    ) -> Decoded:
        """Answer the request that the planner has encoded last, as `plan` does.

        Args:
            prompted: What `Planner.encode` returned.
            request: What it was of.
            time: As for `plan`.
            sampler: Chooses among the legal candidates.
            trace: Receives the spans draft, those of the decoding, and trajectory.
            options: See `Decoding`.

        Raises:
            InputError: as for `plan`.
            CapacityError: prompt and answer do not fit the KV cache.
        """
        self._require_later(time)
        with trace.span("draft"):
            draft = replace(
                self._draft(request, time),
                actions_ahead=self._actions_ahead.choose(),
                reasoning_ahead=self._reasoning_ahead.choose(),
            )
        decoded = self._planner.answer(
            prompted, sampler=sampler, trace=trace, draft=draft, **options
        )
        with trace.span("trajectory"):
            trajectory = self._planner.trajectory(decoded)
        self._last = _Last(time, decoded, trajectory)
        self._learn(decoded)
        return decoded

    def reset(self) -> None:
        """Forget the last plan: the next request may have any time."""
        self._last = None

    def _require_later(self, time: float) -> None:
        if not np.isfinite(time) or (self._last is not None and time <= self._last.time):
            last = "none" if self._last is None else f"{self._last.time} s"
            raise InputError(
                f"time: expected one later than the last request's ({last}), got {time} s.\n"
                "Call reset() where a recording begins again or the clock was set."
            )

    def _learn(self, decoded: Decoded) -> None:
        """Note which guesses of actions, and of reasoning behind the prefill, were right."""
        for guess in decoded.guesses[1:]:
            if guess.start >= decoded.first_action:
                self._actions_ahead.note(guess.count, guess.right)
            elif decoded.reasoning:
                self._reasoning_ahead.note(guess.count, guess.right)

    def _draft(self, request: Request, time: float) -> Draft:
        """Carry the last plan on, unless it is over."""
        last = self._last
        if last is None or time - last.time >= self._steps * self._dt:
            return self._planner.draft(request)
        likely = carried_on(last.trajectory, self._dt, time - last.time)
        return draft_from(last.decoded, self._planner.actions_of(likely))
