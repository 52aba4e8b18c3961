import numpy as np
import pytest
import torch
from hf_miniatures import SHAPES
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import Qwen2_5_VLConfig
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLModel

from autovla_rt.export.passes.static_mrope import VideoSpan, mrope_positions, rotary_tables

GEOMETRY = SHAPES["head128"].geometry()
VISION_START, VIDEO_PAD, VISION_END = 151652, 151656, 151653


def transformers_positions(ids, grids, tokens_per_second):
    """Positions by transformers' own method, called without building a model."""
    config = Qwen2_5_VLConfig(
        vision_config={"tokens_per_second": tokens_per_second, "spatial_merge_size": 2},
        vision_start_token_id=VISION_START,
        video_token_id=VIDEO_PAD,
        image_token_id=151655,
    )
    holder = type("Holder", (), {"config": config})()
    positions, _ = Qwen2_5_VLModel.get_rope_index(
        holder,
        torch.tensor([ids]),
        None,
        torch.tensor(grids),
        torch.ones(len(grids)),
        torch.ones(1, len(ids), dtype=torch.long),
    )
    return positions[:, 0].numpy()


sides = st.integers(1, 6).map(lambda n: 2 * n)
grids_of_videos = st.lists(
    st.tuples(st.integers(1, 3), sides, sides, st.integers(0, 9)), min_size=1, max_size=4
)


@settings(max_examples=60, deadline=None)
@given(videos=grids_of_videos, tail=st.integers(1, 12), rate=st.sampled_from([2, 4]))
def test_positions_equal_transformers(videos, tail, rate):
    ids, spans = [], []
    for frames, rows, columns, text in videos:
        ids += [7] * text + [VISION_START]
        spans.append(VideoSpan(len(ids), (frames, rows, columns)))
        ids += [VIDEO_PAD] * (frames * rows * columns // 4) + [VISION_END]
    ids += [7] * tail
    vision = GEOMETRY.vision.model_copy(update={"tokens_per_second": float(rate)})
    geometry = GEOMETRY.model_copy(update={"vision": vision})
    expected = transformers_positions(ids, [span.grid for span in spans], rate)
    np.testing.assert_array_equal(mrope_positions(geometry, spans, len(ids)), expected)


def test_tables_give_each_section_its_coordinate():
    positions = np.array([[3], [50], [700]])
    cos, sin = rotary_tables(GEOMETRY, positions)
    frequencies = 1e6 ** -(np.arange(64) / 64)
    angles = np.concatenate([3 * frequencies[:16], 50 * frequencies[16:40], 700 * frequencies[40:]])
    np.testing.assert_allclose(cos[0], np.cos(angles), atol=1e-5)
    np.testing.assert_allclose(sin[0], np.sin(angles), atol=1e-5)


def test_tables_are_stored_row_by_row():
    cos, sin = rotary_tables(GEOMETRY, np.tile(np.arange(9), (3, 1)))
    assert cos.flags.c_contiguous
    assert sin.flags.c_contiguous


def test_overlapping_videos_are_refused():
    with pytest.raises(ValueError, match="overlaps"):
        mrope_positions(GEOMETRY, [VideoSpan(1, (2, 4, 4)), VideoSpan(5, (2, 4, 4))], 40)


def test_videos_beyond_the_end_are_refused():
    with pytest.raises(ValueError, match="beyond 8"):
        mrope_positions(GEOMETRY, [VideoSpan(1, (2, 4, 4))], 8)
