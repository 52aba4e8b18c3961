"""Wall-clock deadlines: reasoning ends while there is still time for the actions."""

from __future__ import annotations

from time import perf_counter

from autovla_rt.errors import InputError
from autovla_rt.runtime.latency import LatencyModel


class Deadline:
    """A deadline of one request; its clock starts now.

    The time for the scaffold and the actions is reserved first, from the latency model's 99th
    percentiles; what is left is for reasoning.

    Args:
        deadline_ms: Milliseconds from now to the plan.
        latency: What was measured on this machine.

    Raises:
        InputError: a plan without reasoning takes longer.
    """

    def __init__(self, deadline_ms: float, latency: LatencyModel) -> None:
        if not deadline_ms >= latency.least_ms:
            raise InputError(
                f"deadline: expected at least {latency.least_ms:.1f} ms, which a plan without "
                f"reasoning takes here ({latency.device}, {latency.threads or 'all'} threads, 99th "
                f"percentile of {latency.requests} requests), got {deadline_ms:g} ms.\n"
                "Give more time, or use a faster machine or engine."
            )
        latest = deadline_ms - latency.actions_ms - latency.token_ms
        self._last_token = perf_counter() + latest / 1e3

    def closes_reasoning(self) -> bool:
        """Whether another token of reasoning would leave too little time for the actions."""
        return perf_counter() > self._last_token
