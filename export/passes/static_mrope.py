"""static_mrope (exact): 3-D multimodal rotary positions folded into one table by sequence index.

For a fixed camera layout the (temporal, row, column) position of every sequence index is known at
build time: text before, between and after the videos has constant length, and after the last video
all three coordinates advance together. So cos/sin become a 1-D table over sequence positions and
any engine with plain rotary embedding runs the model. Saves the per-request position ids.

Source: Qwen2-VL (arXiv 2409.12191), section 2.1; transformers `Qwen2_5_VLModel.get_rope_index`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from autovla_rt.config import Geometry


@dataclass(frozen=True)
class VideoSpan:
    """A video's place in the token sequence: first position and (temporal, rows, columns) grid."""

    start: int
    grid: tuple[int, int, int]


SECONDS_PER_TEMPORAL_PATCH = 1.0
"""Two frames at 2 Hz."""


def mrope_positions(
    geometry: Geometry, videos: Sequence[VideoSpan], length: int
) -> NDArray[np.int64]:
    """Return [3, length] positions (temporal, row, column) of every sequence index.

    Raises:
        ValueError: a video reaches beyond `length` or overlaps the one before it.
    """
    merge = geometry.vision.spatial_merge_size
    step = int(geometry.vision.tokens_per_second * SECONDS_PER_TEMPORAL_PATCH)
    pieces: list[NDArray[np.int64]] = []
    filled = following = 0
    for video in videos:
        if video.start < filled:
            raise ValueError(f"video at {video.start} overlaps position {filled}")
        text = np.arange(following, following + video.start - filled)
        frames, rows, columns = video.grid[0], video.grid[1] // merge, video.grid[2] // merge
        temporal, row, column = np.indices((frames, rows, columns)).reshape(3, -1)
        first = following + text.size
        block = np.stack([temporal * step, row, column]) + first
        pieces += [np.tile(text, (3, 1)), block]
        filled = video.start + block.shape[1]
        following = int(block.max()) + 1
    if filled > length:
        raise ValueError(f"videos end at position {filled}, beyond {length}")
    pieces.append(np.tile(np.arange(following, following + length - filled), (3, 1)))
    return np.concatenate(pieces, axis=1)


def rotary_tables(
    geometry: Geometry, positions: NDArray[np.int64]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return cos and sin [length, head_dim/2] for [3, length] positions.

    `mrope_section` says how many of the head_dim/2 frequencies follow each coordinate. Frequencies
    stay float32: rounding them to bfloat16 moves logits by 0.1-0.3.
    """
    language = geometry.language
    exponent = np.arange(0, language.head_dim, 2, dtype=np.float32) / np.float32(language.head_dim)
    frequencies = (1.0 / np.float32(language.rope_theta) ** exponent).astype(np.float32)
    coordinate = np.repeat(np.arange(3), language.mrope_section)
    angles = positions[coordinate].T.astype(np.float32, order="C") * frequencies
    return np.cos(angles), np.sin(angles)
