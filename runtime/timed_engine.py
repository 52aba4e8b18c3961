"""A planner whose engines note how long each of their calls takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from time import perf_counter_ns

import numpy as np
from numpy.typing import NDArray

from autovla_rt.bundle import Bundle
from autovla_rt.config import Camera
from autovla_rt.runtime.backends import (
    Float,
    FrameEngine,
    LanguageEngine,
    Pending,
    VisionEngine,
)
from autovla_rt.runtime.engines import open_engines
from autovla_rt.runtime.planner import Planner


@dataclass(frozen=True)
class EngineCall:
    """One call: what, for how many rows, and when.

    Rows are patches of vision, and positions otherwise. Calls are vision, pass, head, choice head
    and action head; of a device that works while the host goes on vision is the waiting, vision
    start and pass ahead the putting on its queue.
    """

    name: str
    rows: int
    start_ns: int
    end_ns: int

    @property
    def ms(self) -> float:
        """Milliseconds that it took."""
        return (self.end_ns - self.start_ns) / 1e6


class TimedVision:
    """A vision engine that adds its calls to a list."""

    def __init__(self, engine: VisionEngine, calls: list[EngineCall]) -> None:
        self._engine = engine
        self._calls = calls

    def encode(self, patches: Float, grid: tuple[int, int]) -> Float:
        """Encode, as the engine does."""
        start = perf_counter_ns()
        features = self._engine.encode(patches, grid)
        rows = patches.shape[0] * patches.shape[1]
        self._calls.append(EngineCall("vision", rows, start, perf_counter_ns()))
        return features


class TimedFrames(TimedVision):
    """A vision engine that takes frames, likewise: what starting takes, and waiting."""

    def __init__(self, engine: FrameEngine, calls: list[EngineCall]) -> None:
        super().__init__(engine, calls)
        self._frames = engine

    def start(self, frames: Sequence[NDArray[np.uint8]], camera: Camera) -> Pending:
        """Start, as the engine does."""
        start = perf_counter_ns()
        pending = self._frames.start(frames, camera)
        _, height, width = camera.grid
        rows = len(frames) // 2 * height * width
        self._calls.append(EngineCall("vision start", rows, start, perf_counter_ns()))

        def features() -> Float:
            start = perf_counter_ns()
            found = pending()
            self._calls.append(EngineCall("vision", rows, start, perf_counter_ns()))
            return found

        return features


class TimedLanguage:
    """A language engine that adds its calls to a list."""

    def __init__(self, engine: LanguageEngine, calls: list[EngineCall]) -> None:
        self._engine = engine
        self._calls = calls

    @property
    def capacity(self) -> int:
        """Positions that the KV cache holds."""
        return self._engine.capacity

    @property
    def length(self) -> int:
        """Positions filled so far."""
        return self._engine.length

    @property
    def prefix_length(self) -> int:
        """Positions filled at load."""
        return self._engine.prefix_length

    @property
    def works_ahead(self) -> bool:
        """Whether a pass that returns no state returns before it is done."""
        return self._engine.works_ahead

    def embed(self, token_ids: NDArray[np.int64]) -> Float:
        """Look up token ids (not timed: a copy of rows)."""
        return self._engine.embed(token_ids)

    def extend(self, embeddings: Float, last: int | None = None) -> Float:
        """Append embeddings, as the engine does."""
        start = perf_counter_ns()
        hidden = self._engine.extend(embeddings, last)
        self._note("pass ahead" if last == 0 else "pass", embeddings, start)
        return hidden

    def truncate(self, length: int) -> None:
        """Forget positions."""
        self._engine.truncate(length)

    def logits(self, hidden: Float) -> Float:
        """Full head, as the engine's."""
        start = perf_counter_ns()
        logits = self._engine.logits(hidden)
        self._note("head", hidden, start)
        return logits

    def choice_logits(self, hidden: Float, token_ids: tuple[int, int]) -> Float:
        """Head of the decision, as the engine's."""
        start = perf_counter_ns()
        logits = self._engine.choice_logits(hidden, token_ids)
        self._note("choice head", hidden, start)
        return logits

    def action_logits(self, hidden: Float) -> Float:
        """Action head, as the engine's."""
        start = perf_counter_ns()
        logits = self._engine.action_logits(hidden)
        self._note("action head", hidden, start)
        return logits

    def _note(self, name: str, rows: Float, start: int) -> None:
        self._calls.append(EngineCall(name, len(rows), start, perf_counter_ns()))


def open_timed(bundle: Bundle, threads: int | None) -> tuple[Planner, list[EngineCall]]:
    """Open a bundle's engines; returns a planner and the list that they add their calls to.

    Raises:
        BundleError, InputError: as `open_engines`.
    """
    calls: list[EngineCall] = []
    vision, language = open_engines(bundle, threads)
    timed = (
        TimedFrames(vision, calls)
        if isinstance(vision, FrameEngine)
        else TimedVision(vision, calls)
    )
    return Planner(bundle, timed, TimedLanguage(language, calls)), calls
