import numpy as np
import pytest
from PIL import Image

from autovla_rt.kernels.resample import bicubic_axis, resample, rows_first

BICUBIC = Image.Resampling.BICUBIC


@pytest.mark.parametrize("contrast", ["noise", "extremes"])
@pytest.mark.parametrize(
    ("size", "resized"),
    [
        ((1080, 1920), (224, 420)),
        ((900, 1600), (224, 420)),
        ((375, 1242), (168, 588)),
        ((480, 640), (280, 392)),
        ((224, 392), (224, 392)),
        ((48, 64), (224, 420)),
        ((100, 420), (28, 420)),
        ((100, 420), (100, 140)),
        ((5, 7), (28, 28)),
        ((1, 1), (28, 28)),
    ],
    ids=str,
)
def test_bit_for_bit_pillow(size, resized, contrast):
    frame = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    if contrast == "extremes":  # sums below 0 and above 255
        frame = (frame > 127).astype(np.uint8) * 255
    expected = np.asarray(Image.fromarray(frame).resize(resized[::-1], BICUBIC))
    np.testing.assert_array_equal(resample(frame[None], resized)[0], expected)


def test_it_is_known_where_pillow_takes_the_rows_first():
    rng = np.random.default_rng(0)
    differed = 0
    for _ in range(300):
        size = tuple(map(int, rng.integers(20, 200, 2)))
        resized = tuple(int(rng.integers(8, side + 30)) for side in size)
        frame = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
        expected = np.asarray(Image.fromarray(frame).resize(resized[::-1], BICUBIC))
        is_equal = np.array_equal(resample(frame[None], resized)[0], expected)
        assert is_equal or rows_first(size, resized), (size, resized)
        differed += not is_equal
    assert differed > 50
    assert not rows_first((1080, 1920), (224, 420))


def test_frames_are_resized_each_by_itself():
    frames = np.random.default_rng(1).integers(0, 256, (3, 40, 50, 3), dtype=np.uint8)
    together = resample(frames, (28, 28))
    for frame, alone in zip(frames, together, strict=True):
        np.testing.assert_array_equal(resample(frame[None], (28, 28))[0], alone)


def test_coefficients_of_an_output_sum_to_one_within_their_rounding():
    for size, out in ((1080, 224), (28, 28), (5, 28)):
        axis = bicubic_axis(size, out)
        assert (np.abs(axis.taps.sum(axis=1) - (1 << 22)) <= axis.taps.shape[1]).all()
        assert (axis.first >= 0).all()
        assert (axis.first + (axis.taps != 0).sum(axis=1) <= size).all()
