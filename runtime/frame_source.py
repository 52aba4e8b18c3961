"""Frames as they are given (files, images, arrays): what they hold, told apart by content."""

from __future__ import annotations

import logging
import struct
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
import xxhash
from numpy.typing import NDArray
from PIL import ExifTags, Image

from autovla_rt.errors import InputError

Frame = Path | Image.Image | NDArray[np.uint8]
"""An image file, a PIL image, or a uint8 array [H, W, 3] (RGB) or [H, W] (greyscale)."""

EIGHT_BIT_MODES = frozenset({"1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr"})
"""PIL modes that convert to RGB without loss of range; 16-bit and float images would be clipped."""

UPRIGHT = 1

log = logging.getLogger("autovla_rt")


@dataclass(frozen=True)
class FrameSource:
    """A frame that was read but not decoded.

    Attributes:
        digest: 128 bits of its content (a file's bytes, an array's values), and nothing else: a
            frame that is changed in place is another one.
        decode: Returns it as an RGB image; raises InputError.
    """

    digest: bytes
    decode: Callable[[], Image.Image]


def open_frame(frame: Frame, name: str) -> FrameSource:
    """Read a frame; `name` stands for it in messages.

    Raises:
        InputError: the file cannot be read, or the array is not uint8 [H, W, 3] or [H, W].
    """
    if isinstance(frame, Path):
        data = _read_file(frame, name)
        return FrameSource(_digest("file", data), lambda: to_rgb(_open(data, name), name))
    if isinstance(frame, np.ndarray):
        array = _checked(frame, name)
        return FrameSource(
            _digest(f"array {array.shape}", array.data),
            lambda: to_rgb(Image.fromarray(array), name),
        )
    image = to_rgb(read_image(frame, name), name)
    return FrameSource(_digest(f"image {image.size}", image.tobytes()), lambda: image)


def _digest(kind: str, data: bytes | memoryview) -> bytes:
    state = xxhash.xxh3_128(kind.encode())
    state.update(data)
    return state.digest()


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
        return _open(_read_file(frame, name), name)
    if isinstance(frame, np.ndarray):
        return Image.fromarray(_checked(frame, name))
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
    return image if image.mode == "RGB" else image.convert("RGB")


def _read_file(path: Path, name: str) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise InputError(f"{name}: the file does not exist.\nCheck the path.") from None
    except OSError as error:
        raise _unopened(name, error) from error


def _open(data: bytes, name: str) -> Image.Image:
    try:
        with Image.open(BytesIO(data)) as image:
            return _decode(image, name)
    except (OSError, Image.DecompressionBombError) as error:
        raise _unopened(name, error) from error


def _unopened(name: str, error: Exception) -> InputError:
    return InputError(
        f"{name}: the image cannot be opened ({error}).\nExpected a JPEG or PNG file."
    )


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


def _checked(array: NDArray[np.uint8], name: str) -> NDArray[np.uint8]:
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
    return np.ascontiguousarray(array)
