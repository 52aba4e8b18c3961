"""Pairs of frames to visual features: on the host in batches, or on a device camera by camera."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from functools import cache
from typing import Protocol

import numpy as np

from autovla_rt.config import Camera
from autovla_rt.runtime.backends import Float, FrameEngine, Grid, Pending, VisionEngine
from autovla_rt.runtime.frames import FramePreprocessor, Prepared
from autovla_rt.runtime.trace import Trace

Pair = tuple[Prepared, Prepared]
NewPairs = Mapping[Camera, Mapping[Hashable, Pair]]
"""Pairs to encode, by a key of their content, each under the first camera that shows it."""


class PairEncoder(Protocol):
    """Runs the vision tower on pairs of frames."""

    def start(self, new: NewPairs, trace: Trace) -> dict[Hashable, Pending]:
        """Start encoding; returns by key what waits for a pair's features [tokens, hidden]."""
        ...


class PatchPairs:
    """For an engine that takes patches: new pairs of all cameras of one grid are its batch.

    Args:
        frames: Cuts frames into patches.
        engine: Encodes them.
    """

    def __init__(self, frames: FramePreprocessor, engine: VisionEngine) -> None:
        self._frames, self._engine = frames, engine

    def start(self, new: NewPairs, trace: Trace) -> dict[Hashable, Pending]:
        """Encode, spans preprocess and vision."""
        by_grid: dict[Grid, dict[Hashable, Pair]] = {}
        for camera, pairs in new.items():
            by_grid.setdefault(camera.grid[1:], {}).update(pairs)
        with trace.span("preprocess"):
            patches = {
                grid: self._frames.normalise(
                    np.concatenate([self._frames.levels(pair) for pair in pairs.values()])
                )
                for grid, pairs in by_grid.items()
            }
        found: dict[Hashable, Pending] = {}
        with trace.span("vision"):
            for grid, pairs in by_grid.items():
                features = self._engine.encode(patches[grid], grid)
                found.update(zip(pairs, map(_known, features), strict=True))
        return found


class FramePairs:
    """For an engine that takes frames, and works while the host goes on.

    Args:
        engine: Resizes frames and encodes them.
    """

    def __init__(self, engine: FrameEngine) -> None:
        self._engine = engine

    def start(self, new: NewPairs, trace: Trace) -> dict[Hashable, Pending]:
        """Put each camera's pairs on the device's queue, span vision: resizing is part of it."""
        found: dict[Hashable, Pending] = {}
        for camera, pairs in new.items():
            frames = [frame.pixels for pair in pairs.values() for frame in pair]
            with trace.span("vision"):
                features = cache(self._engine.start(frames, camera))
            found.update((key, _row(features, index)) for index, key in enumerate(pairs))
        return found


def _known(features: Float) -> Pending:
    return lambda: features


def _row(features: Callable[[], Float], index: int) -> Pending:
    return lambda: features()[index]
