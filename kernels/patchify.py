"""Frames to patches, the reference of the GPU kernel: uint8 RGB -> normalised rows of the tower."""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray

from autovla_rt.config import Preprocessing, VisionGeometry


def patchify(
    frames: NDArray[np.uint8], preprocessing: Preprocessing, vision: VisionGeometry
) -> NDArray[np.float32]:
    """Return the patches [F / 2, rows * columns, patch_width] of resized RGB frames [F, H, W, 3].

    H and W are multiples of patch_size * spatial_merge_size, F of temporal_patch_size. Patches of
    one 2x2 merge block follow each other, blocks go row by row; the values of a patch are ordered
    (channel, time, row, column). Bit for bit what transformers' Qwen2-VL processor computes.

    Source: transformers 4.57, `Qwen2VLImageProcessor._preprocess`.
    """
    # Reordering bytes and looking floats up afterwards moves a quarter of the memory.
    return normalise(patch_levels(frames, vision), preprocessing)


def normalise(levels: NDArray[np.uint8], preprocessing: Preprocessing) -> NDArray[np.float32]:
    """Return the patches of 8-bit levels [..., patch_width] in the order of `patch_levels`."""
    channels = len(preprocessing.image_mean)
    pixels = levels.reshape(-1, channels, levels.shape[-1] // channels)
    patches = np.empty(pixels.shape, np.float32)
    for channel, table in enumerate(normalised_levels(preprocessing)):
        # Every uint8 is a valid index: mode "clip" only spares NumPy a buffered copy.
        np.take(table, pixels[:, channel], out=patches[:, channel], mode="clip")
    return patches.reshape(levels.shape)


def patch_levels(frames: NDArray[np.uint8], vision: VisionGeometry) -> NDArray[np.uint8]:
    """Return what `patchify` returns before normalisation: the 8-bit levels in the same order."""
    patch, merge, clip = vision.patch_size, vision.spatial_merge_size, vision.temporal_patch_size
    count, height, width, channels = frames.shape
    blocks = frames.reshape(
        count // clip,
        clip,
        height // (patch * merge),
        merge,
        patch,
        width // (patch * merge),
        merge,
        patch,
        channels,
    ).transpose(0, 2, 5, 3, 6, 8, 1, 4, 7)
    return np.ascontiguousarray(blocks).reshape(count // clip, -1, vision.patch_width)


@cache
def normalised_levels(preprocessing: Preprocessing) -> NDArray[np.float32]:
    """Return the value of every uint8 level in every channel, [3, 256].

    Rescales in float64 and normalises in float32, as transformers does.
    """
    rescaled = (np.arange(256) * (1 / 255)).astype(np.float32)
    mean = np.array(preprocessing.image_mean, np.float32)[:, None]
    std = np.array(preprocessing.image_std, np.float32)[:, None]
    return (rescaled - mean) / std
