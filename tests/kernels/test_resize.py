import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from qwen_vl_utils_module import import_vision_process

from autovla_rt.config import Preprocessing, VisionGeometry
from autovla_rt.errors import InputError
from autovla_rt.kernels.resize import smart_resize, video_grid

BUDGET = 140 * 28 * 28


@pytest.fixture(scope="module")
def qwen_resize():
    return import_vision_process().smart_resize


def vision(**changes):
    return VisionGeometry(
        depth=1,
        hidden_size=64,
        num_heads=1,
        intermediate_size=64,
        out_hidden_size=64,
        fullatt_block_indexes=(0,),
        **changes,
    )


@given(
    height=st.integers(1, 3000),
    width=st.integers(1, 3000),
    min_blocks=st.integers(1, 400),
    extra_blocks=st.integers(0, 400),
    factor=st.sampled_from((28, 32, 56)),
)
def test_equals_qwen_vl_utils(qwen_resize, height, width, min_blocks, extra_blocks, factor):
    assume(max(height, width) <= 200 * min(height, width))
    bounds = {
        "factor": factor,
        "min_pixels": min_blocks * factor**2,
        "max_pixels": (min_blocks + extra_blocks) * factor**2,
    }
    expected = qwen_resize(height, width, **bounds)
    if 0 in expected:
        with pytest.raises(InputError, match="shrinks to"):
            smart_resize(height, width, **bounds)
    else:
        assert smart_resize(height, width, **bounds) == expected


@pytest.mark.parametrize(
    ("width", "height", "grid"),
    [
        (1920, 1080, (2, 16, 30)),
        (1600, 900, (2, 16, 30)),
        (1242, 375, (2, 12, 42)),
        (1920, 1280, (2, 18, 28)),
        (960, 720, (2, 20, 26)),
    ],
)
def test_grids_of_the_training_datasets(width, height, grid):
    preprocessing = Preprocessing(min_pixels=BUDGET, max_pixels=BUDGET)
    assert video_grid(width, height, preprocessing, vision()) == grid


def test_shrinking_may_end_below_min_pixels():
    height, width = smart_resize(1080, 1920, min_pixels=BUDGET, max_pixels=BUDGET)
    assert (height, width) == (224, 420)
    assert height * width < BUDGET


def test_grid_follows_the_towers_patch_and_merge():
    preprocessing = Preprocessing(min_pixels=1, max_pixels=10**6)
    grid = video_grid(96, 64, preprocessing, vision(patch_size=16, temporal_patch_size=4))
    assert grid == (1, 4, 6)


@pytest.mark.parametrize(
    ("width", "height", "message"),
    [
        (201 * 28, 28, "aspect ratio of 201"),
        (0, 100, "0x100"),
        (100, -1, "100x-1"),
        (190 * 28, 28, "shrinks to"),
    ],
)
def test_unusable_sizes_are_refused(width, height, message):
    with pytest.raises(InputError, match=message):
        smart_resize(height, width, min_pixels=784, max_pixels=100 * 784)
