"""Batches made in the background while the step before them trains."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from autovla_rt.demo.batch import Batch

WAIT_SECONDS = 0.1


class Source(Protocol):
    """Where the micro-batches of a step come from."""

    def batch(self, step: int) -> list[Batch]:
        """Return the micro-batches of optimisation step `step`, the same ones every time."""


@contextmanager
def prefetched(
    source: Source, first: int, stop: int, depth: int
) -> Iterator[Iterator[list[Batch]]]:
    """Give the batches of steps first..stop-1, at most `depth` of them made in advance.

    The source is called from one thread. What it raises is raised from the iterator.
    """
    ready: queue.Queue[list[Batch] | BaseException] = queue.Queue(depth)
    closed = threading.Event()

    def put(item: list[Batch] | BaseException) -> None:
        while not closed.is_set():
            try:
                ready.put(item, timeout=WAIT_SECONDS)
            except queue.Full:
                continue
            return

    def produce() -> None:
        try:
            for step in range(first, stop):
                if closed.is_set():
                    return
                put(source.batch(step))
        except BaseException as error:
            put(error)

    def batches() -> Iterator[list[Batch]]:
        for _ in range(first, stop):
            item = ready.get()
            if isinstance(item, BaseException):
                raise item
            yield item

    thread = threading.Thread(target=produce, name="prefetch", daemon=True)
    thread.start()
    try:
        yield batches()
    finally:
        closed.set()
        thread.join()
