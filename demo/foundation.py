"""What a miniature has before it is trained: tokenizer, action codebook and configuration.

The tokenizer is trained on the recipe and on narrations, the codebook on the expert's plans, both
of scenes that no other part uses.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np

from autovla_rt.config import Geometry
from autovla_rt.demo.miniature import NUM_ACTIONS, corpus, train_tokenizer, write_foundation
from autovla_rt.demo.narrator import narrate
from autovla_rt.demo.road import Array
from autovla_rt.demo.scenes import record_scene
from autovla_rt.export.k_disk import k_disk
from autovla_rt.kernels.contour import compose, inverse, pose_to_corners

FIRST_SEED = 3_000_000_000
"""Seeds from here on belong to the foundation; training and evaluation stay below."""

NARRATIONS = 800
CODEBOOK_SCENES = 24_000
TOLERANCE = 0.04
CHUNK = 500


def write_trained_foundation(out: Path, seed: int, scenes: int = CODEBOOK_SCENES) -> Geometry:
    """Write everything but the weights of a miniature that will be trained; see `miniature.py`."""
    tokenizer = train_tokenizer(corpus(narrations()))
    segments = plan_segments(scenes)
    corners = k_disk(pose_to_corners(segments), NUM_ACTIONS, tolerance=TOLERANCE, seed=seed)
    return write_foundation(out, tokenizer, corners, "trained in its own world (demo/)")


def narrations() -> Iterator[str]:
    """Yield the lines of reasoning about some hundred complex scenes."""
    for index in range(NARRATIONS * 2):
        scene = record_scene(FIRST_SEED + index)
        if scene.complex:
            yield from narrate(scene).splitlines()


def plan_segments(scenes: int) -> Array:
    """Return the motions of 0.5 s in the expert's plans, poses [n, 3], a standstill first."""
    starts = range(0, scenes, CHUNK)
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        return np.concatenate([np.zeros((1, 3)), *pool.map(_segments_from, starts)])


def _segments_from(start: int) -> Array:
    pieces = []
    for index in range(CHUNK):
        poses = record_scene(FIRST_SEED + 1_000_000 + start + index).trajectory
        before = np.concatenate([np.zeros((1, 3)), poses[:-1]])
        pieces.append(compose(inverse(before), poses))
    return np.concatenate(pieces)
