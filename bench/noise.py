"""Requests for engines that no world is drawn for: frames of noise, one new one each time."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from autovla_rt.bundle import Bundle
from autovla_rt.config import CAMERAS, FRAMES_PER_CAMERA
from autovla_rt.demo.drivers import FRAME_HEIGHT, FRAME_WIDTH
from autovla_rt.kernels.resize import video_grid
from autovla_rt.runtime.scene import Request

WIDTH, HEIGHT = 1920, 1080


def sees_the_world(bundle: Bundle) -> bool:
    """Whether an engine was built for the frames of the miniature's world."""
    manifest = bundle.manifest
    vision = manifest.geometry.vision
    grid = video_grid(FRAME_WIDTH, FRAME_HEIGHT, manifest.preprocessing, vision)
    return all(camera.grid == grid for camera in manifest.cameras)


def noise_requests(seed: int) -> Iterator[Request]:
    """Yield requests of 16:9 frames, 0.5 s apart."""
    rng = np.random.default_rng(seed)
    frames: dict[str, list[NDArray[np.uint8]]] = {camera: [] for camera in CAMERAS}
    while True:
        for of in frames.values():
            missing = max(FRAMES_PER_CAMERA - len(of), 1)
            of += [rng.integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8) for _ in range(missing)]
            del of[:-FRAMES_PER_CAMERA]
        yield Request({camera: list(of) for camera, of in frames.items()}, 5.0, 0.1, "keep forward")
