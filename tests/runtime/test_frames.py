import logging

import numpy as np
import pytest
from PIL import Image
from qwen_vl_utils_module import import_vision_process
from transformers.models.qwen2_vl.image_processing_qwen2_vl import Qwen2VLImageProcessor

from autovla_rt.config import Camera, Preprocessing, VisionGeometry
from autovla_rt.errors import InputError
from autovla_rt.kernels.resample import resample
from autovla_rt.kernels.resize import video_grid
from autovla_rt.runtime.frames import FramePreprocessor, bicubic, for_kernel

VISION = VisionGeometry(
    depth=1,
    hidden_size=64,
    num_heads=1,
    intermediate_size=64,
    out_hidden_size=64,
    fullatt_block_indexes=(0,),
)
PREPROCESSING = Preprocessing(min_pixels=140 * 28 * 28, max_pixels=140 * 28 * 28)
SIZES = {"16:9": (640, 360), "4:3": (320, 240), "ultra-wide": (1242, 375), "portrait": (200, 600)}
ORIENTATION_TAG = 0x0112


@pytest.fixture(scope="module")
def fetch_image():
    return import_vision_process().fetch_image


@pytest.fixture(scope="module")
def reference(fetch_image):
    """The training path: qwen-vl-utils reads and resizes, transformers patches without resizing."""
    bounds = PREPROCESSING.model_dump(include={"min_pixels", "max_pixels"})
    processor = Qwen2VLImageProcessor(do_resize=False)

    def patches(images):
        resized = [
            fetch_image(
                {"image": image if isinstance(image, Image.Image) else str(image), **bounds}
            )
            for image in images
        ]
        batch = processor.preprocess(images=None, videos=[resized])
        return batch["pixel_values_videos"], tuple(batch["video_grid_thw"][0])

    return patches


def pictures(size, mode, count=4):
    """Smooth gradients with noise and hard edges, so that resizing filters show."""
    rng = np.random.default_rng(0)
    width, height = size
    for i in range(count):
        shape = (height, width, len(mode)) if len(mode) > 1 else (height, width)
        pixels = rng.integers(0, 256, shape, dtype=np.uint8)
        pixels[: height // 2, i * 20 :] = np.linspace(0, 255, width, dtype=np.uint8)[
            i * 20 :
        ].reshape((1, -1) + (1,) * (len(shape) - 2))
        yield Image.fromarray(pixels, mode)


def camera_for(size):
    return Camera(name="front", grid=video_grid(*size, PREPROCESSING, VISION))


def prepare(frames, size):
    return FramePreprocessor(PREPROCESSING, VISION).patches(frames, camera_for(size))


def assert_equal(patches, expected):
    rows, grid = expected
    assert patches.shape == (grid[0], grid[1] * grid[2], VISION.patch_width)
    np.testing.assert_allclose(patches.reshape(rows.shape), rows, rtol=0, atol=1e-6)


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA"])
@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
def test_equals_the_training_preprocessing(reference, size, mode):
    frames = list(pictures(size, mode))
    assert_equal(prepare(frames, size), reference(frames))


@pytest.mark.parametrize(
    ("suffix", "mode"),
    [("jpg", "RGB"), ("jpg", "L"), ("png", "RGB"), ("png", "RGBA"), ("png", "1")],
)
def test_files_equal_the_training_preprocessing(tmp_path, reference, suffix, mode):
    size = SIZES["4:3"]
    files = [tmp_path / f"{i}.{suffix}" for i in range(4)]
    for file, picture in zip(files, pictures(size, "L" if mode == "1" else mode), strict=True):
        picture.convert(mode).save(file)
    assert_equal(prepare(files, size), reference(files))


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_arrays_equal_images(mode):
    size = SIZES["16:9"]
    images = list(pictures(size, mode))
    arrays = [np.asarray(image) for image in images]
    np.testing.assert_array_equal(prepare(arrays, size), prepare(images, size))


def test_palette_image_equals_training(reference):
    size = SIZES["4:3"]
    frames = [image.quantize(16) for image in pictures(size, "RGB")]
    assert_equal(prepare(frames, size), reference(frames))


def test_frames_keep_their_order():
    size = SIZES["4:3"]
    frames = list(pictures(size, "RGB"))
    forward, backward = prepare(frames, size), prepare(frames[::-1], size)
    half = VISION.patch_size**2
    np.testing.assert_array_equal(forward[0, :, :half], backward[1, :, half : 2 * half])
    assert not np.array_equal(forward, backward)


@pytest.mark.parametrize("as_file", [True, False])
def test_exif_orientation_is_ignored_with_a_warning(tmp_path, reference, caplog, as_file):
    size = SIZES["4:3"]
    exif = Image.Exif()
    exif[ORIENTATION_TAG] = 6
    files = [tmp_path / f"{i}.jpg" for i in range(4)]
    for file, picture in zip(files, pictures(size, "RGB"), strict=True):
        picture.save(file, exif=exif)
    frames = files if as_file else [Image.open(file) for file in files]
    with caplog.at_level(logging.WARNING, "autovla_rt"):
        patches = prepare(frames, size)
    assert_equal(patches, reference(files))
    # Frames are read side by side, so the order of their messages is any.
    warnings = sorted(r.getMessage() for r in caplog.records if r.name == "autovla_rt")
    assert len(warnings) == 4
    assert "frame 0" in warnings[0]
    assert "orientation 6" in warnings[0]


def test_upright_exif_passes_without_warning(tmp_path, caplog):
    exif = Image.Exif()
    exif[ORIENTATION_TAG] = 1
    upright = tmp_path / "upright.jpg"
    next(pictures(SIZES["4:3"], "RGB")).save(upright, exif=exif)
    prepare([upright] * 4, SIZES["4:3"])
    assert caplog.records == []


@pytest.mark.parametrize(
    "exif",
    [
        b"Exif\0\0XX\x2a\0garbage",
        b"Exif\0\0MM\0*\0\0\0",
        b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x02\0\0\0\x02x\0\0\0\0\0\0\0",
    ],
    ids=["no TIFF header", "cut short", "orientation is a text"],
)
def test_damaged_exif_does_not_reject_good_pixels(tmp_path, exif):
    picture = next(pictures(SIZES["4:3"], "RGB"))
    damaged = tmp_path / "damaged.png"
    picture.save(damaged, exif=exif)
    np.testing.assert_array_equal(
        prepare([damaged] * 4, SIZES["4:3"]), prepare([picture] * 4, SIZES["4:3"])
    )


@pytest.mark.parametrize("suffix", ["jpg", "png"])
@pytest.mark.parametrize("kept", [0.02, 0.5, 0.97])
def test_truncated_file_is_named(tmp_path, suffix, kept):
    size = SIZES["4:3"]
    good, cut = tmp_path / f"good.{suffix}", tmp_path / f"cut.{suffix}"
    next(pictures(size, "RGB")).save(good)
    content = good.read_bytes()
    cut.write_bytes(content[: int(len(content) * kept)])
    with pytest.raises(InputError, match=r"camera front, frame 2 .*cut\."):
        prepare([good, good, cut, good], size)


@pytest.mark.parametrize(
    ("content", "message"), [(b"not an image", "cannot be opened"), (None, "does not exist")]
)
def test_unreadable_file_is_named(tmp_path, content, message):
    size = SIZES["4:3"]
    good, bad = tmp_path / "good.jpg", tmp_path / "bad.jpg"
    next(pictures(size, "RGB")).save(good)
    if content is not None:
        bad.write_bytes(content)
    with pytest.raises(InputError, match=rf"frame 3 .*bad\.jpg.*{message}"):
        prepare([good, good, good, bad], size)


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (np.full((240, 320, 3), np.nan, np.float32), "uint8 array .* got float32"),
        (np.zeros((240, 320, 3), np.int64), "got int64"),
        (np.zeros((3, 240, 320), np.uint8), r"\[3, 240, 320\]"),
        (np.zeros((240, 320, 4), np.uint8), r"\[240, 320, 4\]"),
        (np.zeros((0, 320, 3), np.uint8), r"\[0, 320, 3\]"),
        ("frame.jpg", "got str"),
        (Image.new("I;16", (320, 240)), "mode I;16"),
        (Image.new("F", (320, 240)), "mode F"),
    ],
)
def test_frames_of_another_kind_are_refused(frame, message):
    size = SIZES["4:3"]
    good = np.zeros((240, 320, 3), np.uint8)
    with pytest.raises(InputError, match=rf"camera front, frame 1.*{message}"):
        prepare([good, frame, good, good], size)


@pytest.mark.parametrize("count", [0, 3, 5])
def test_exactly_four_frames(count):
    size = SIZES["4:3"]
    with pytest.raises(InputError, match=f"expected 4 frames, got {count}"):
        prepare([np.zeros((240, 320, 3), np.uint8)] * count, size)


def test_frames_of_unequal_size_are_refused():
    frames = [np.zeros((240, 320, 3), np.uint8)] * 3 + [np.zeros((241, 320, 3), np.uint8)]
    with pytest.raises(InputError, match="320x240, 320x240, 320x240, 320x241"):
        prepare(frames, SIZES["4:3"])


def test_size_of_another_grid_names_both_and_the_rebuild():
    camera = Camera(name="front_left", grid=(2, 16, 30))
    frames = [np.zeros((375, 1242, 3), np.uint8)] * 4
    with pytest.raises(InputError) as caught:
        FramePreprocessor(PREPROCESSING, VISION).patches(frames, camera)
    for part in ("front_left", "(2, 12, 42)", "(2, 16, 30)", "--frame-size front_left=1242x375"):
        assert part in str(caught.value)


def test_another_size_of_the_same_grid_is_accepted():
    frames = [np.zeros((1080, 1920, 3), np.uint8)] * 4
    assert prepare(frames, SIZES["16:9"]).shape == (2, 480, 1176)


def test_a_device_resizes_frames_itself_but_for_those_that_pillow_resizes_rows_first():
    rng = np.random.default_rng(0)
    wide, tall = (
        Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8))
        for size in ((108, 192), (400, 100))
    )
    np.testing.assert_array_equal(for_kernel(wide, (56, 28)), np.asarray(wide))
    np.testing.assert_array_equal(for_kernel(tall, (28, 112)), bicubic(tall, (28, 112)))
    assert not np.array_equal(
        resample(np.asarray(tall)[None], (112, 28))[0], bicubic(tall, (28, 112))
    )
