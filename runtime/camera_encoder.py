"""The frames of all cameras as visual features, each pair of frames by itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from autovla_rt.config import Camera
from autovla_rt.runtime.backends import Float, VisionEngine
from autovla_rt.runtime.feature_cache import FeatureCache, content_key
from autovla_rt.runtime.frames import Frame, FramePreprocessor
from autovla_rt.runtime.trace import Trace


class CameraEncoder:
    """Preprocesses frames and runs the vision tower on those that a cache does not know.

    The tower is compiled for one temporal patch (two frames) of one camera; new pairs of all
    cameras of one grid are its batch.
    """

    def __init__(
        self, cameras: Sequence[Camera], frames: FramePreprocessor, engine: VisionEngine
    ) -> None:
        self._cameras = cameras
        self._frames = frames
        self._engine = engine

    def encode(
        self, frames: Mapping[str, Sequence[Frame]], trace: Trace, cache: FeatureCache
    ) -> dict[str, Float]:
        """Return the features [visual tokens, hidden] of each camera.

        Args:
            frames: The four frames of each camera, oldest first.
            trace: Receives the spans preprocess and vision.
            cache: Knows pairs of frames, and gets to know these.

        Raises:
            InputError: a frame is unusable or does not fit the engine.
        """
        with trace.span("preprocess"):
            levels = {c.name: self._frames.levels(frames[c.name], c) for c in self._cameras}
            keys = {name: [content_key(name, p) for p in pairs] for name, pairs in levels.items()}
            known = {key: cache.get(key) for of_camera in keys.values() for key in of_camera}
            new: dict[tuple[int, int], list[tuple[str, int]]] = {}
            for camera in self._cameras:
                for index, key in enumerate(keys[camera.name]):
                    if known[key] is None:
                        new.setdefault(camera.grid[1:], []).append((camera.name, index))
            patches = {
                grid: self._frames.normalise(np.stack([levels[name][i] for name, i in places]))
                for grid, places in new.items()
            }
        with trace.span("vision"):
            for grid, places in new.items():
                encoded = self._engine.encode(patches[grid], grid)
                for (name, index), features in zip(places, encoded, strict=True):
                    known[keys[name][index]] = features
                    cache.put(keys[name][index], features)
        return {name: np.concatenate([known[key] for key in of]) for name, of in keys.items()}
