"""Compile a recipe's prompt to token ids, as Qwen2.5-VL's chat template would render it."""

from __future__ import annotations

from collections.abc import Sequence

from tokenizers import Tokenizer

from autovla_rt.config import (
    Camera,
    CompiledPrompt,
    Geometry,
    Prompt,
    Slot,
    Template,
    Video,
    VideoTokens,
)
from autovla_rt.errors import RecipeError

VISION_START, VISION_END, VIDEO_PAD = "<|vision_start|>", "<|vision_end|>", "<|video_pad|>"
USER_END = "<|im_end|>\n<|im_start|>assistant\n"


def compile_prompt(
    tokenizer: Tokenizer,
    prompt: Prompt,
    cameras: Sequence[Camera],
    geometry: Geometry,
    *,
    add_vision_id: bool,
) -> CompiledPrompt:
    """Tokenize everything up to the last video; keep the text after it as a template.

    `add_vision_id` writes "Video N: " before each video, as transformers newer than the official
    pin can.

    Raises:
        RecipeError: a video of an unknown camera, or a slot before the last video.
    """
    counts = {
        camera.name: camera.num_visual_tokens(geometry.vision.spatial_merge_size)
        for camera in cameras
    }
    last = max(i for i, part in enumerate(prompt.user) if isinstance(part, Video))
    text = f"<|im_start|>system\n{prompt.system}<|im_end|>\n<|im_start|>user\n"
    order = []
    for part in prompt.user[: last + 1]:
        if isinstance(part, Video):
            if part.camera not in counts:
                raise RecipeError(
                    f"the prompt shows the camera {part.camera!r}, expected one of "
                    f"{', '.join(counts)}. Correct the recipe."
                )
            order.append(part.camera)
            label = f"Video {len(order)}: " if add_vision_id else ""
            text += f"{label}{VISION_START}{VIDEO_PAD * counts[part.camera]}{VISION_END}"
        else:
            text += _constant(part)
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    starts = _video_starts(ids, tokenizer.token_to_id(VISION_START))
    return CompiledPrompt(
        prefix_ids=tuple(ids),
        videos=tuple(
            VideoTokens(camera=camera, start=start, count=counts[camera])
            for camera, start in zip(order, starts, strict=True)
        ),
        tail=_tail(prompt.user[last + 1 :]),
    )


def _video_starts(ids: Sequence[int], vision_start: int) -> list[int]:
    return [position + 1 for position, token in enumerate(ids) if token == vision_start]


def _constant(template: Template) -> str:
    for part in template:
        if isinstance(part, Slot):
            raise RecipeError(
                f"the slot {{{part.slot}}} stands before the last video; expected constant text "
                "there, since the engine computes everything up to the last video in advance. "
                "Move the slot to the last text of the user message."
            )
    return "".join(part for part in template if isinstance(part, str))


def _tail(parts: Sequence[Template | Video]) -> Template:
    joined = [piece for part in parts if not isinstance(part, Video) for piece in part]
    return (*joined, USER_END)
