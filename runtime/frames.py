"""Camera frames to vision patches, equal to the preprocessing of training."""

from __future__ import annotations

import logging
import struct
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image

from autovla_rt.config import FRAMES_PER_CAMERA, Camera, Preprocessing, VisionGeometry
from autovla_rt.errors import InputError
from autovla_rt.kernels.patchify import normalise, patch_levels
from autovla_rt.kernels.resize import smart_resize, video_grid

Frame = Path | Image.Image | NDArray[np.uint8]
"""An image file, a PIL image, or a uint8 array [H, W, 3] (RGB) or [H, W] (greyscale)."""

EIGHT_BIT_MODES = frozenset({"1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr"})
"""PIL modes that convert to RGB without loss of range; 16-bit and float images would be clipped."""

UPRIGHT = 1
BICUBIC = Image.Resampling.BICUBIC

log = logging.getLogger("autovla_rt")


class FramePreprocessor:
    """Turn the frames of one camera into the rows that the vision tower reads."""

    def __init__(self, preprocessing: Preprocessing, vision: VisionGeometry) -> None:
        self._preprocessing = preprocessing
        self._vision = vision
        # Pillow decodes and resizes without the interpreter's lock.
        self._pool = ThreadPoolExecutor(FRAMES_PER_CAMERA, thread_name_prefix="frames")

    def patches(self, frames: Sequence[Frame], camera: Camera) -> NDArray[np.float32]:
        """Return the patches [temporal, rows * columns, patch_width] of a camera's four frames.

        See `levels`, which raises, too; these are normalised.
        """
        return self.normalise(self.levels(frames, camera))

    def normalise(self, levels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return the patches of levels [..., patch_width]."""
        return normalise(levels, self._preprocessing)

    def levels(self, frames: Sequence[Frame], camera: Camera) -> NDArray[np.uint8]:
        """Return the 8-bit patches [temporal, rows * columns, patch_width] of four frames.

        `frames` are oldest first, 0.5 s apart, of one size. Each is resized once (PIL bicubic, to
        the size of `smart_resize`); EXIF orientation is ignored with a warning, as the training
        code ignores it.

        Raises:
            InputError: Not four frames, an unreadable or truncated file, an array or image of
                another type, frames of unequal size, or a size that the engine was not built for.
        """
        if len(frames) != FRAMES_PER_CAMERA:
            raise InputError(
                f"camera {camera.name}: expected {FRAMES_PER_CAMERA} frames, got {len(frames)}.\n"
                "Give the last four frames at 2 Hz, oldest first."
            )
        names = [describe(frame, camera.name, index) for index, frame in enumerate(frames)]
        images = list(self._pool.map(_read_rgb, frames, names))
        width, height = self._common_size(images, camera)
        resized_height, resized_width = smart_resize(
            height,
            width,
            factor=self._vision.patch_size * self._vision.spatial_merge_size,
            min_pixels=self._preprocessing.min_pixels,
            max_pixels=self._preprocessing.max_pixels,
        )
        size = resized_width, resized_height
        resized = self._pool.map(lambda image: image.resize(size, BICUBIC), images)
        pixels = np.stack([np.asarray(image) for image in resized])
        return patch_levels(pixels, self._vision)

    def _common_size(self, images: Sequence[Image.Image], camera: Camera) -> tuple[int, int]:
        """Return the (width, height) of all images, one that gives the camera's compiled grid."""
        sizes = [image.size for image in images]
        if len(set(sizes)) > 1:
            listed = ", ".join(f"{width}x{height}" for width, height in sizes)
            raise InputError(
                f"camera {camera.name}: expected four frames of one size, got {listed}.\n"
                "Give frames of one camera without cropping or scaling some of them."
            )
        width, height = sizes[0]
        grid = video_grid(width, height, self._preprocessing, self._vision)
        if grid != camera.grid:
            raise InputError(
                f"camera {camera.name}: frames of {width}x{height} give the patch grid {grid}, "
                f"but this engine was built for the grid {camera.grid}.\n"
                f"Give frames of the built size, or rebuild: autovla-rt build --frame-size "
                f"{camera.name}={width}x{height}"
            )
        return width, height


def _read_rgb(frame: Frame, name: str) -> Image.Image:
    return to_rgb(read_image(frame, name), name)


def describe(frame: Frame, camera: str, index: int) -> str:
    """Return how error messages name the frame at `index` (0 = oldest) of a camera."""
    place = f"camera {camera}, frame {index}"
    return f"{place} ({frame})" if isinstance(frame, Path) else place


def read_image(frame: Frame, name: str) -> Image.Image:
    """Return the fully decoded image of a frame; `name` stands for it in messages.

    Raises:
        InputError: The file cannot be read or decoded to its end, or the array is not uint8
            [H, W, 3] or [H, W].
    """
    if isinstance(frame, Path):
        return _read_file(frame, name)
    if isinstance(frame, np.ndarray):
        return _read_array(frame, name)
    if isinstance(frame, Image.Image):
        return _decode(frame, name)
    raise InputError(
        f"{name}: expected a pathlib.Path, a PIL image or a uint8 array, "
        f"got {type(frame).__name__}.\nWrap a file name as Path(name)."
    )


def to_rgb(image: Image.Image, name: str) -> Image.Image:
    """Return the image as RGB: transparency over white, greyscale in all three channels.

    Source: qwen-vl-utils, `to_rgb` (only mode RGBA is laid over white there, so only it is here).

    Raises:
        InputError: A 16-bit or float image, whose values a conversion would clip at 255.
    """
    if image.mode not in EIGHT_BIT_MODES:
        raise InputError(
            f"{name}: expected 8-bit pixels, got an image of PIL mode {image.mode}.\n"
            "Scale it to 8 bits first, the way the training frames were made."
        )
    if image.mode == "RGBA":
        white = Image.new("RGB", image.size, (255, 255, 255))
        white.paste(image, mask=image.getchannel("A"))
        return white
    return image.convert("RGB")


def _read_file(path: Path, name: str) -> Image.Image:
    try:
        with Image.open(path) as image:
            return _decode(image, name)
    except FileNotFoundError:
        raise InputError(f"{name}: the file does not exist.\nCheck the path.") from None
    except (OSError, Image.DecompressionBombError) as error:
        raise InputError(
            f"{name}: the image cannot be opened ({error}).\nExpected a JPEG or PNG file."
        ) from error


def _decode(image: Image.Image, name: str) -> Image.Image:
    """Return the image, decoded to its last pixel and with a warning about EXIF orientation."""
    try:
        # PIL is lazy: without this a truncated file would pass until its pixels are used.
        image.load()
    except (OSError, SyntaxError, ValueError) as error:
        raise InputError(
            f"{name}: the image is damaged or truncated ({error}).\nCopy or record it again."
        ) from error
    orientation = _exif_orientation(image)
    if orientation != UPRIGHT:
        log.warning(
            "%s: EXIF orientation %s is ignored, as in training; the model sees the stored pixels. "
            "Rotate the pixels themselves if the picture should be upright.",
            name,
            orientation,
        )
    return image


def _exif_orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, UPRIGHT))
    except (SyntaxError, ValueError, TypeError, struct.error):
        # Training never read the tag, so a damaged EXIF block must not reject good pixels.
        return UPRIGHT


def _read_array(array: NDArray[np.uint8], name: str) -> Image.Image:
    if array.dtype != np.uint8:
        raise InputError(
            f"{name}: expected a uint8 array with levels 0..255, got {array.dtype}.\n"
            "Convert with (values * 255).round().astype(numpy.uint8) if it holds 0..1."
        )
    if array.ndim not in (2, 3) or array.shape[2:] not in ((), (3,)) or array.size == 0:
        raise InputError(
            f"{name}: expected an array [H, W, 3] (RGB) or [H, W] (greyscale), "
            f"got shape {list(array.shape)}.\nTranspose channels-first arrays."
        )
    return Image.fromarray(np.ascontiguousarray(array))
