"""The frames of all cameras as visual features, each pair of frames by itself."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from autovla_rt.config import Camera
from autovla_rt.runtime.backends import Float, VisionEngine
from autovla_rt.runtime.content_cache import ContentCache
from autovla_rt.runtime.frame_source import Frame
from autovla_rt.runtime.frames import FramePreprocessor, Resized
from autovla_rt.runtime.trace import Trace


class Seen:
    """What is known of the last frames and pairs of frames, by their content.

    At 2 Hz three of a camera's four frames were in the request before, and a pair of frames comes
    again two requests later, so 12 of each are enough for three cameras. It is exact: a pair's
    features do not depend on what else is encoded (docs/architecture.md, "Batch invariance").

    Args:
        size: Most frames, and most pairs, to keep; 0 keeps none.

    Raises:
        InputError: `size` is negative.
    """

    def __init__(self, size: int) -> None:
        self.frames = ContentCache[Resized](size)
        self.features = ContentCache[Float](size)


class CameraEncoder:
    """Preprocesses frames and runs the vision tower on those pairs that were not seen before.

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
        self, frames: Mapping[str, Sequence[Frame]], trace: Trace, seen: Seen
    ) -> dict[str, Float]:
        """Return the features [visual tokens, hidden] of each camera.

        Args:
            frames: The four frames of each camera, oldest first.
            trace: Receives the spans image_decode, preprocess and vision.
            seen: Knows frames and pairs, and gets to know these.

        Raises:
            InputError: a frame is unusable or does not fit the engine.
        """
        keys: dict[str, list[Hashable]] = {}
        known: dict[Hashable, Float] = {}
        new: dict[tuple[int, int], dict[Hashable, NDArray[np.uint8]]] = {}
        resized = self._frames.resized(frames, self._cameras, trace=trace, seen=seen.frames)
        with trace.span("preprocess"):
            for camera in self._cameras:
                of = resized[camera.name]
                for pair in zip(of[::2], of[1::2], strict=True):
                    key: Hashable = tuple(frame.digest for frame in pair)
                    keys.setdefault(camera.name, []).append(key)
                    features = seen.features.get(key)
                    if features is None:
                        new.setdefault(camera.grid[1:], {})[key] = self._frames.levels(pair)
                    else:
                        known[key] = features
            patches = {
                grid: self._frames.normalise(np.concatenate(list(pairs.values())))
                for grid, pairs in new.items()
            }
        with trace.span("vision"):
            for grid, levels in new.items():
                encoded = self._engine.encode(patches[grid], grid)
                for key, features in zip(levels, encoded, strict=True):
                    known[key] = features
                    # A copy: a row of the batch would keep all of it in memory.
                    seen.features.put(key, features.copy())
        return {name: np.concatenate([known[key] for key in of]) for name, of in keys.items()}
