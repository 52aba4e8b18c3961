"""Frames to patches, the reference of the GPU kernel: uint8 RGB -> normalised rows of the tower."""

from __future__ import annotations

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
    # Reordering bytes and making floats of them afterwards moves a quarter of the memory.
    return normalise(patch_levels(frames, vision), preprocessing)


def normalise(levels: NDArray[np.uint8], preprocessing: Preprocessing) -> NDArray[np.float32]:
    """Return the patches of 8-bit levels [..., patch_width] in the order of `patch_levels`.

    transformers rescales in float64, as level * (1 / 255), and rounds to float32; dividing by 255
    in float32 gives the same for each of the 256 levels.
    """
    channels = len(preprocessing.image_mean)
    patches = levels.reshape(-1, channels, levels.shape[-1] // channels).astype(np.float32)
    patches /= np.float32(255)
    patches -= np.array(preprocessing.image_mean, np.float32)[:, None]
    patches /= np.array(preprocessing.image_std, np.float32)[:, None]
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
