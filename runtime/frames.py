"""Camera frames to vision patches, equal to the preprocessing of training."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from autovla_rt.config import FRAMES_PER_CAMERA, Camera, Preprocessing, VisionGeometry
from autovla_rt.errors import InputError
from autovla_rt.kernels.patchify import normalise, patch_levels
from autovla_rt.kernels.resample import rows_first
from autovla_rt.kernels.resize import smart_resize, video_grid
from autovla_rt.runtime.content_cache import ContentCache
from autovla_rt.runtime.frame_source import Frame, FrameSource, describe, open_frame
from autovla_rt.runtime.trace import Trace

Item = TypeVar("Item")
Result = TypeVar("Result")

BICUBIC = Image.Resampling.BICUBIC


Shrink = Callable[[Image.Image, tuple[int, int]], NDArray[np.uint8]]
"""Makes an RGB frame pixels [H, W, 3] for a vision tower that sees (width, height) of it."""


def bicubic(image: Image.Image, size: tuple[int, int]) -> NDArray[np.uint8]:
    """Resize a frame to (width, height), as in training."""
    return np.asarray(image.resize(size, BICUBIC))


def for_kernel(image: Image.Image, size: tuple[int, int]) -> NDArray[np.uint8]:
    """Return a frame as it is, for a device that resizes it itself.

    One that Pillow resizes rows first is resized here: the device takes columns first.
    """
    before, after = (image.height, image.width), (size[1], size[0])
    return bicubic(image, size) if rows_first(before, after) else np.asarray(image)


@dataclass(frozen=True)
class Prepared:
    """A frame as the vision engine takes it.

    Attributes:
        digest: Of the frame's content.
        size: (width, height) as it was given.
        pixels: uint8 [H, W, 3], resized unless the engine does that.
    """

    digest: bytes
    size: tuple[int, int]
    pixels: NDArray[np.uint8]


class FramePreprocessor:
    """Turn frames into what a vision engine reads.

    Args:
        preprocessing: Pixel limits and normalisation.
        vision: Of the model.
        shrink: Makes each frame its pixels.
    """

    def __init__(
        self, preprocessing: Preprocessing, vision: VisionGeometry, shrink: Shrink = bicubic
    ) -> None:
        self._preprocessing = preprocessing
        self._vision = vision
        self._shrink = shrink
        # Pillow decodes and resizes without the interpreter's lock.
        self._pool = ThreadPoolExecutor(FRAMES_PER_CAMERA, thread_name_prefix="frames")

    def patches(self, frames: Sequence[Frame], camera: Camera) -> NDArray[np.float32]:
        """Return the patches [temporal, rows * columns, patch_width] of a camera's four frames.

        See `prepared`, which raises.
        """
        prepared = self.prepared({camera.name: frames}, [camera])[camera.name]
        return self.normalise(self.levels(prepared))

    def normalise(self, levels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return the patches of levels [..., patch_width]."""
        return normalise(levels, self._preprocessing)

    def levels(self, frames: Sequence[Prepared]) -> NDArray[np.uint8]:
        """Return the 8-bit patches [temporal, rows * columns, patch_width] of pairs of frames."""
        return patch_levels(np.stack([frame.pixels for frame in frames]), self._vision)

    def prepared(
        self,
        frames: Mapping[str, Sequence[Frame]],
        cameras: Sequence[Camera],
        *,
        trace: Trace | None = None,
        seen: ContentCache[Prepared] | None = None,
    ) -> dict[str, list[Prepared]]:
        """Prepare each camera's four frames, oldest first, 0.5 s apart, of one size.

        Each is resized once (PIL bicubic, to the size of `smart_resize`), those that were `seen`
        not at all; EXIF orientation is ignored with a warning, as the training code ignores it.
        `trace` receives the spans image_decode (reading, and telling by content, too) and
        preprocess.

        Raises:
            InputError: Not four frames, an unreadable or truncated file, an array or image of
                another type, frames of unequal size, or a size that the engine was not built for.
        """
        trace = trace or Trace()
        seen = ContentCache[Prepared](0) if seen is None else seen
        with trace.span("image_decode"):
            sources = {camera.name: _sources(frames[camera.name], camera) for camera in cameras}
            given = {source.digest: source for of in sources.values() for source in of}
            known = {d: frame for d in given if (frame := seen.get(d)) is not None}
            new = {d: source for d, source in given.items() if d not in known}
            images = dict(zip(new, self._each(_decode, new.values()), strict=True))
        wanted: dict[bytes, tuple[int, int]] = {}
        for camera in cameras:
            digests = [source.digest for source in sources[camera.name]]
            sizes = [(known.get(digest) or images[digest]).size for digest in digests]
            wanted.update(dict.fromkeys(digests, self._resized_size(sizes, camera)))

        def prepare(digest: bytes) -> Prepared:
            image = images[digest]
            return Prepared(digest, image.size, self._shrink(image, wanted[digest]))

        with trace.span("preprocess"):
            for frame in self._each(prepare, new):
                known[frame.digest] = frame
                seen.put(frame.digest, frame)
        return {name: [known[source.digest] for source in of] for name, of in sources.items()}

    def _each(self, function: Callable[[Item], Result], items: Collection[Item]) -> list[Result]:
        """Apply a function side by side, or here where there is only one item."""
        return list((self._pool.map if len(items) > 1 else map)(function, items))

    def _resized_size(self, sizes: Sequence[tuple[int, int]], camera: Camera) -> tuple[int, int]:
        """Return the (width, height) to resize to; frames must give the camera's compiled grid."""
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
        resized_height, resized_width = smart_resize(
            height,
            width,
            factor=self._vision.patch_size * self._vision.spatial_merge_size,
            min_pixels=self._preprocessing.min_pixels,
            max_pixels=self._preprocessing.max_pixels,
        )
        return resized_width, resized_height


def _sources(frames: Sequence[Frame], camera: Camera) -> list[FrameSource]:
    """Open the four frames of a camera."""
    if len(frames) != FRAMES_PER_CAMERA:
        raise InputError(
            f"camera {camera.name}: expected {FRAMES_PER_CAMERA} frames, got {len(frames)}.\n"
            "Give the last four frames at 2 Hz, oldest first."
        )
    return [
        open_frame(frame, describe(frame, camera.name, index)) for index, frame in enumerate(frames)
    ]


def _decode(source: FrameSource) -> Image.Image:
    return source.decode()
