"""The frame size that training used: qwen-vl-utils' resize rule and the patch grid that follows."""

from __future__ import annotations

import math

from autovla_rt.config import FRAMES_PER_CAMERA, Preprocessing, VisionGeometry
from autovla_rt.errors import InputError

MAX_ASPECT_RATIO = 200


def smart_resize(
    height: int, width: int, *, factor: int = 28, min_pixels: int, max_pixels: int
) -> tuple[int, int]:
    """Return the (height, width) in pixels to which training resizes a frame of `height` x `width`.

    Both sides are multiples of `factor`, the aspect ratio is roughly kept and the area is at most
    `max_pixels`. Shrinking rounds down, so the result may have fewer than `min_pixels`; enlarging
    rounds up, so it may have more than `max_pixels` where the two bounds are close.

    Source: qwen-vl-utils, `smart_resize`.

    Raises:
        InputError: A side is not positive, the aspect ratio is above 200, or a side would be zero.
    """
    size = f"a frame of {width}x{height} (width x height)"
    if height < 1 or width < 1:
        raise InputError(f"{size} has no pixels.\nGive frames with at least one pixel a side.")
    ratio = max(height, width) / min(height, width)
    if ratio > MAX_ASPECT_RATIO:
        raise InputError(
            f"{size} has an aspect ratio of {ratio:.0f}; the model's preprocessing accepts at most "
            f"{MAX_ASPECT_RATIO}.\nCrop the frame."
        )
    rows = max(1, round(height / factor))
    columns = max(1, round(width / factor))
    area = rows * columns * factor**2
    if area > max_pixels:
        shrink = math.sqrt(height * width / max_pixels)
        rows = math.floor(height / shrink / factor)
        columns = math.floor(width / shrink / factor)
    elif area < min_pixels:
        enlarge = math.sqrt(min_pixels / (height * width))
        rows = math.ceil(height * enlarge / factor)
        columns = math.ceil(width * enlarge / factor)
    if rows == 0 or columns == 0:
        raise InputError(
            f"{size} shrinks to {columns * factor}x{rows * factor} under max_pixels {max_pixels}.\n"
            "Crop the frame to a less extreme aspect ratio."
        )
    return rows * factor, columns * factor


def video_grid(
    width: int, height: int, preprocessing: Preprocessing, vision: VisionGeometry
) -> tuple[int, int, int]:
    """Return (temporal patches, patch rows, patch columns) of one camera's four frames.

    `width` and `height` are the pixels of a frame before resizing; all four frames share them.

    Raises:
        InputError: See `smart_resize`.
    """
    resized_height, resized_width = smart_resize(
        height,
        width,
        factor=vision.patch_size * vision.spatial_merge_size,
        min_pixels=preprocessing.min_pixels,
        max_pixels=preprocessing.max_pixels,
    )
    return (
        FRAMES_PER_CAMERA // vision.temporal_patch_size,
        resized_height // vision.patch_size,
        resized_width // vision.patch_size,
    )
