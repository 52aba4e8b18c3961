"""transformers' generate in bfloat16, as the official code calls it: every token a pass."""

from __future__ import annotations

import time
from math import prod
from typing import Any

import torch
import transformers
from transformers import Qwen2_5_VLForConditionalGeneration
from transformers.generation.streamers import BaseStreamer
from worker import Shape, arguments, say, say_end

CAMERAS = 3
MERGED = 4
"""Patches of a visual token."""


class Clock(BaseStreamer):
    """Notes when tokens come: the first call is the prompt."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def put(self, value: Any) -> None:  # noqa: ARG002  the base class's
        """A token was chosen."""
        self.times.append(time.perf_counter())

    def end(self) -> None:
        """The answer is complete."""


def prompt(model: Qwen2_5_VLForConditionalGeneration, shape: Shape) -> torch.Tensor:
    """Filler of the right length, with three videos."""
    config = model.config
    visual = prod(shape.grid) // MERGED
    ids = torch.randint(0, 200, (1, shape.prompt))
    start = (shape.prompt - CAMERAS * (visual + 3)) // 2
    for _ in range(CAMERAS):
        end = start + 1 + visual
        ids[0, start], ids[0, end] = config.vision_start_token_id, config.vision_end_token_id
        ids[0, start + 1 : end] = config.video_token_id
        start = end + 2
    return ids


def main() -> None:
    """Measure."""
    given = arguments(__doc__)
    shape: Shape = given.shape
    torch.set_num_threads(given.threads)
    torch.manual_seed(0)
    start = time.perf_counter()
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(
        given.work / "base", dtype=torch.bfloat16
    ).eval()
    load_s = time.perf_counter() - start
    spent: list[float] = []
    encode = model.model.visual.forward

    def timed_encode(*words: Any, **named: Any) -> Any:
        begin = time.perf_counter()
        features = encode(*words, **named)
        spent.append(time.perf_counter() - begin)
        return features

    model.model.visual.forward = timed_encode
    ids = prompt(model, shape)
    of = model.config.vision_config
    patch_width = of.in_channels * of.temporal_patch_size * of.patch_size**2
    inputs = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "pixel_values_videos": torch.randn(CAMERAS * prod(shape.grid), patch_width),
        "video_grid_thw": torch.tensor([shape.grid] * CAMERAS),
        "second_per_grid_ts": [1.0] * CAMERAS,
    }
    for _ in range(given.requests):
        spent.clear()
        clock = Clock()
        begin = time.perf_counter()
        with torch.no_grad():
            model.generate(
                **inputs,
                max_new_tokens=shape.answer,
                min_new_tokens=shape.answer,
                do_sample=True,
                temperature=0.8,
                top_k=20,
                top_p=0.2,
                repetition_penalty=1.05,
                pad_token_id=0,
                streamer=clock,
            )
        first, last = clock.times[1], clock.times[-1]
        say(vision=sum(spent), prefill=first - begin - sum(spent), decode=last - first)
    say_end(load_s, version=transformers.__version__)


if __name__ == "__main__":
    main()
