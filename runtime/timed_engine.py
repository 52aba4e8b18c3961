"""A planner whose engines note how long each of their calls takes."""

from __future__ import annotations

from dataclasses import dataclass
from time import perf_counter_ns

import numpy as np
from numpy.typing import NDArray

from autovla_rt.bundle import Bundle
from autovla_rt.runtime.backends import Float, LanguageEngine, VisionEngine
from autovla_rt.runtime.planner import Planner, open_engines


@dataclass(frozen=True)
class EngineCall:
    """One call: what (vision, pass, head or action head), for how many rows, and when.

    Rows are patches of vision, and positions otherwise.
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

    def embed(self, token_ids: NDArray[np.int64]) -> Float:
        """Look up token ids (not timed: a copy of rows)."""
        return self._engine.embed(token_ids)

    def extend(self, embeddings: Float, last: int | None = None) -> Float:
        """Append embeddings, as the engine does."""
        start = perf_counter_ns()
        hidden = self._engine.extend(embeddings, last)
        self._note("pass", embeddings, start)
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
    return Planner(bundle, TimedVision(vision, calls), TimedLanguage(language, calls)), calls
