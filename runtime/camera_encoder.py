"""The frames of all cameras as visual features, each pair of frames by itself."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

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
        self,
        frames: Mapping[str, Sequence[Frame]],
        trace: Trace,
        cache: FeatureCache | None = None,
    ) -> dict[str, Float]:
        """Return the features [visual tokens, hidden] of each camera.

        Args:
            frames: The four frames of each camera, oldest first.
            trace: Receives the spans preprocess and vision.
            cache: Knows pairs of frames, and gets to know these.

        Raises:
            InputError: a frame is unusable or does not fit the engine.
        """
        keys: dict[str, list[Hashable]] = {}
        known: dict[Hashable, Float] = {}
        new: dict[tuple[int, int], dict[Hashable, NDArray[np.uint8]]] = {}
        with trace.span("preprocess"):
            for camera in self._cameras:
                name = camera.name
                for pair in self._frames.levels(frames[name], camera):
                    of_camera = keys.setdefault(name, [])
                    key = (name, len(of_camera)) if cache is None else content_key(name, pair)
                    of_camera.append(key)
                    features = None if cache is None else cache.get(key)
                    if features is None:
                        new.setdefault(camera.grid[1:], {})[key] = pair
                    else:
                        known[key] = features
            patches = {
                grid: self._frames.normalise(np.stack(list(pairs.values())))
                for grid, pairs in new.items()
            }
        with trace.span("vision"):
            for grid, pairs in new.items():
                encoded = self._engine.encode(patches[grid], grid)
                for key, features in zip(pairs, encoded, strict=True):
                    known[key] = features
                    if cache is not None:
                        cache.put(key, features)
        return {name: np.concatenate([known[key] for key in of]) for name, of in keys.items()}
