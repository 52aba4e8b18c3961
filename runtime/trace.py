"""Where a request's time goes: named spans, measured on the monotonic clock."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from time import perf_counter_ns


class Trace:
    """Durations of one request's stages, in the order in which the stages were first entered.

    Spans of different names may nest (each keeps its full duration). A name that is entered again
    later adds up; one entered again while it is still open is not timed twice.
    """

    def __init__(self) -> None:
        self._elapsed_ns: dict[str, int] = {}
        self._open: set[str] = set()

    @contextmanager
    def span(self, name: str) -> Iterator[None]:
        """Measure the body as part of stage `name`, also when it raises."""
        self._elapsed_ns.setdefault(name, 0)
        if name in self._open:
            yield
            return
        self._open.add(name)
        start = perf_counter_ns()
        try:
            yield
        finally:
            self._elapsed_ns[name] += perf_counter_ns() - start
            self._open.remove(name)

    def stages_ms(self) -> dict[str, float]:
        """Return the milliseconds spent in each stage; a span that is still open counts nothing."""
        return {name: elapsed / 1e6 for name, elapsed in self._elapsed_ns.items()}
