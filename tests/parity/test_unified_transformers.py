"""transformers reads a checkpoint of ours in half precision as what torch rounds to it."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hf_miniatures import SHAPES, build_model, write_checkpoint
from transformers import AutoTokenizer, Qwen2_5_VLForConditionalGeneration

from autovla_rt.export.open_model import ModelFiles, open_model
from autovla_rt.export.progress import NoProgress
from autovla_rt.export.settings import Settings
from autovla_rt.export.unified import export_checkpoint

CHECKOUT = Path(__file__).resolve().parents[1] / "export" / "fixtures" / "checkout"
GRID = (2, 8, 8)


@pytest.mark.parametrize("shape", SHAPES)
def test_half_precision_is_the_same_model(qwen_processor, tmp_path, shape):
    reference = build_model(SHAPES[shape])
    config = write_checkpoint(reference, qwen_processor, tmp_path, use_cot=True)
    out = tmp_path / "out"
    out.mkdir()
    files = ModelFiles(tmp_path / "base", config, recipe=CHECKOUT)
    model = open_model(files)
    with model.checkpoint:
        export_checkpoint(model, Settings("c", "h100", "fp16"), out, NoProgress())
    read = Qwen2_5_VLForConditionalGeneration.from_pretrained(
        out, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    inputs = example(AutoTokenizer.from_pretrained(out), reference.config)
    with torch.no_grad():
        whole = reference(**inputs).logits[0].numpy()
        for parameter in reference.parameters():  # .half() would round the rotary buffers, too
            parameter.copy_(parameter.half())
        half = reference(**inputs).logits[0].numpy()
        found = read(**inputs).logits[0].numpy()
    assert found.shape[1] == 153_713
    np.testing.assert_allclose(found, half, atol=1e-4)
    assert 1e-4 < np.abs(found - whole).max() < 0.02 * np.abs(whole).max()


def example(tokenizer, config):
    """A video between words, and some action tokens."""
    tokens = GRID[0] * GRID[1] * GRID[2] // 4
    video = "<|vision_start|>" + "<|video_pad|>" * tokens + "<|vision_end|>"
    ids = tokenizer(f"Drive {video} on.<action_3><action_2047>", return_tensors="pt").input_ids
    assert (ids == config.video_token_id).sum() == tokens
    generator = torch.Generator().manual_seed(0)
    width = 3 * 2 * 14 * 14
    return {
        "input_ids": ids,
        "pixel_values_videos": torch.randn(
            (GRID[0] * GRID[1] * GRID[2], width), generator=generator
        ),
        "video_grid_thw": torch.tensor([GRID]),
        "second_per_grid_ts": torch.ones(1),
    }
