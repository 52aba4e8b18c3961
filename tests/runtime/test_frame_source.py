"""A frame is told by what it holds."""

import numpy as np
import pytest
from PIL import Image

from autovla_rt.errors import InputError
from autovla_rt.runtime.frame_source import open_frame


def array():
    return np.random.default_rng(0).integers(0, 256, (6, 8, 3), np.uint8)


def digest(frame):
    return open_frame(frame, "a frame").digest


def test_an_array_changed_in_place_is_another_frame():
    frame = array()
    before = digest(frame)
    assert digest(frame.copy()) == before
    frame[5, 7, 2] ^= 1
    assert digest(frame) != before


def test_the_shape_counts_too():
    assert digest(array()) != digest(array().reshape(8, 6, 3))


def test_a_view_is_told_by_its_values():
    frame = array()
    assert digest(frame[::2, ::-1]) == digest(np.ascontiguousarray(frame[::2, ::-1]))


def test_an_image_changed_in_place_is_another_frame():
    image = Image.fromarray(array())
    before = digest(image)
    assert digest(image.copy()) == before
    image.putpixel((3, 2), (0, 0, 0))
    assert digest(image) != before


def test_an_image_with_another_palette_is_another_frame():
    image = Image.fromarray(array()).quantize(8)
    before = digest(image)
    image.putpalette([255 - level for level in image.getpalette()])
    assert digest(image) != before


def test_a_file_written_anew_is_another_frame(tmp_path):
    path = tmp_path / "a.png"
    Image.fromarray(array()).save(path)
    before = open_frame(path, "a frame")
    Image.fromarray(array()[::-1]).save(path)
    assert digest(path) != before.digest
    # what is decoded is what was read, even if the file was replaced meanwhile
    np.testing.assert_array_equal(before.decode(), array())


@pytest.mark.parametrize("size", [0, 40])
def test_a_truncated_file_is_refused_when_it_is_decoded(tmp_path, size):
    path = tmp_path / "a.png"
    Image.fromarray(array()).save(path)
    path.write_bytes(path.read_bytes()[:size])
    source = open_frame(path, "camera front, frame 2")
    with pytest.raises(InputError, match="camera front, frame 2: the image"):
        source.decode()
