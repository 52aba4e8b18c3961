"""Where a request's time goes: named spans, measured on the monotonic clock."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from time import perf_counter_ns

DOMAIN = "autovla-rt"
"""Of the NVTX ranges."""


@dataclass(frozen=True)
class Span:
    """One visit to a stage; `start_ns` and `end_ns` are of the monotonic clock."""

    name: str
    start_ns: int
    end_ns: int


class Trace:
    """The spans of one request.

    Spans of different names may nest (each keeps its full duration). A name that is entered again
    later adds up; one entered again while it is still open is not timed twice. Where NVTX is loaded
    (the TensorRT engine loads it), a span is a range of it as well, which Nsight Systems shows.

    Attributes:
        spans: The visits so far, in the order in which they ended.
    """

    def __init__(self) -> None:
        self.spans: list[Span] = []
        self._entered: dict[str, None] = {}
        self._open: set[str] = set()
        self._nvtx = sys.modules.get("nvtx")

    @contextmanager
    def span(self, name: str) -> Iterator[None]:
        """Measure the body as part of stage `name`, also when it raises."""
        self._entered.setdefault(name)
        if name in self._open:
            yield
            return
        self._open.add(name)
        if self._nvtx is not None:
            self._nvtx.push_range(name, domain=DOMAIN)
        start = perf_counter_ns()
        try:
            yield
        finally:
            self.spans.append(Span(name, start, perf_counter_ns()))
            self._open.remove(name)
            if self._nvtx is not None:
                self._nvtx.pop_range(domain=DOMAIN)

    def stages_ms(self) -> dict[str, float]:
        """Return the milliseconds spent in each stage, in the order in which they were entered.

        A span that is still open counts nothing.
        """
        elapsed = dict.fromkeys(self._entered, 0)
        for span in self.spans:
            elapsed[span.name] += span.end_ns - span.start_ns
        return {name: total / 1e6 for name, total in elapsed.items()}
