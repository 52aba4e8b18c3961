import numpy as np
import pytest
import torch
from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import Qwen2_5_VLVisionConfig
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import (
    Qwen2_5_VisionTransformerPretrainedModel,
)

from autovla_rt.config import VisionGeometry
from autovla_rt.export.passes.static_windows import static_windows

GEOMETRY = VisionGeometry(
    depth=1,
    hidden_size=64,
    num_heads=2,
    intermediate_size=64,
    out_hidden_size=64,
    fullatt_block_indexes=(0,),
)
GRIDS = [(16, 30), (12, 42), (18, 28), (20, 26), (8, 14), (8, 8), (2, 2), (10, 6)]


@pytest.fixture(scope="module")
def tower():
    config = Qwen2_5_VLVisionConfig(
        depth=1, hidden_size=64, num_heads=2, intermediate_size=64, out_hidden_size=64
    )
    return Qwen2_5_VisionTransformerPretrainedModel._from_config(config)


def transformers_windows(tower, rows, columns):
    """The sets of merged tokens that attend to each other, by transformers."""
    index, borders = tower.get_window_index(torch.tensor([[1, rows, columns]]))
    borders = np.unique(borders) // 4
    return {frozenset(part.tolist()) for part in np.split(index.numpy(), borders[1:-1])}


@pytest.mark.parametrize(("rows", "columns"), GRIDS)
def test_windows_hold_the_same_tokens_as_in_transformers(tower, rows, columns):
    layout = static_windows(GEOMETRY, rows, columns)
    tokens = layout.patch_order[::4] // 4
    sizes = [size // 4 for count, size in layout.groups for _ in range(count)]
    assert sum(sizes) == tokens.size
    windows = np.split(tokens, np.cumsum(sizes)[:-1])
    assert {frozenset(w.tolist()) for w in windows} == transformers_windows(tower, rows, columns)


@pytest.mark.parametrize(("rows", "columns"), GRIDS)
def test_rotary_tables_are_transformers_in_tower_order(tower, rows, columns):
    layout = static_windows(GEOMETRY, rows, columns)
    angles = tower.rot_pos_emb(torch.tensor([[1, rows, columns]])).numpy()[layout.patch_order]
    np.testing.assert_allclose(layout.cos, np.cos(angles), atol=1e-6)
    np.testing.assert_allclose(layout.sin, np.sin(angles), atol=1e-6)


@pytest.mark.parametrize(("rows", "columns"), GRIDS)
def test_restore_undoes_the_order(rows, columns):
    layout = static_windows(GEOMETRY, rows, columns)
    tower_tokens = layout.patch_order[::4] // 4
    np.testing.assert_array_equal(
        tower_tokens[layout.token_restore], np.arange(rows * columns // 4)
    )


def test_the_four_patches_of_a_token_stay_together():
    order = static_windows(GEOMETRY, 16, 30).patch_order.reshape(-1, 4)
    np.testing.assert_array_equal(order - order[:, :1], np.tile(np.arange(4), (len(order), 1)))


def test_a_grid_that_cannot_be_merged_is_refused():
    with pytest.raises(ValueError, match="15x30"):
        static_windows(GEOMETRY, 15, 30)
