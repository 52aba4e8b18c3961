"""The frames of all cameras as visual features, each pair of frames by itself."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from functools import partial

import numpy as np

from autovla_rt.config import Camera
from autovla_rt.runtime.backends import Float, Pending
from autovla_rt.runtime.content_cache import ContentCache
from autovla_rt.runtime.frame_source import Frame
from autovla_rt.runtime.frames import FramePreprocessor, Prepared
from autovla_rt.runtime.pair_encoder import Pair, PairEncoder
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
        self.frames = ContentCache[Prepared](size)
        self.features = ContentCache[Float](size)


class CameraEncoder:
    """Prepares frames and runs the vision tower on those pairs that were not seen before.

    The tower is compiled for one temporal patch (two frames) of one camera.
    """

    def __init__(
        self, cameras: Sequence[Camera], frames: FramePreprocessor, pairs: PairEncoder
    ) -> None:
        self._cameras = cameras
        self._frames = frames
        self._pairs = pairs

    def start(
        self, frames: Mapping[str, Sequence[Frame]], trace: Trace, seen: Seen
    ) -> dict[str, Pending]:
        """Start encoding; returns what waits for each camera's features [visual tokens, hidden].

        Args:
            frames: The four frames of each camera, oldest first.
            trace: Receives the spans image_decode, preprocess and vision.
            seen: Knows frames and pairs, and gets to know these.

        Raises:
            InputError: a frame is unusable or does not fit the engine; nothing was started.
        """
        prepared = self._frames.prepared(frames, self._cameras, trace=trace, seen=seen.frames)
        keys: dict[str, list[Hashable]] = {}
        known: dict[Hashable, Float] = {}
        new: dict[Camera, dict[Hashable, Pair]] = {}
        asked: set[Hashable] = set()
        for camera in self._cameras:
            of = prepared[camera.name]
            for pair in zip(of[::2], of[1::2], strict=True):
                key: Hashable = tuple(frame.digest for frame in pair)
                keys.setdefault(camera.name, []).append(key)
                if key in asked:
                    continue
                asked.add(key)
                features = seen.features.get(key)
                if features is None:
                    new.setdefault(camera, {})[key] = pair
                else:
                    known[key] = features
        started = self._pairs.start(new, trace)

        def features_of(name: str) -> Float:
            for key in keys[name]:
                if key not in known:
                    known[key] = started[key]()
                    # A copy: a row of the batch would keep all of it in memory.
                    seen.features.put(key, known[key].copy())
            return np.concatenate([known[key] for key in keys[name]])

        return {name: partial(features_of, name) for name in keys}
