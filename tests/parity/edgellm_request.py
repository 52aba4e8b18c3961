"""Reads a request as TensorRT Edge-LLM's server does, up to its native runtime, which needs a GPU.

Run in .venv-edgellm: python edgellm_request.py BODY FRAMES. Prints what the server made of it.
"""

import json
import sys

from experimental.server.api.protocol import ChatCompletionRequest
from experimental.server.media.media_source import (
    enforce_local_media_policy,
    message_media_modalities,
)
from experimental.server.media.video_sampling import load_video_buffer
from experimental.server.runtime.engine import _normalize_guided_decoding

LIMITS = {
    "model_type": "qwen2_5_vl",
    "patch_size": 14,
    "merge_size": 2,
    "temporal_patch_size": 2,
    "min_image_tokens": 28,
    "max_image_tokens": 168,
    "max_image_tokens_per_image": 28,
}
"""Of an engine that the commands of the export build for three cameras of 8 x 14 patches."""


class Buffer:
    """What the native runtime returns for a video: here, what it was given."""


class Runtime:
    """In the place of the native runtime, of which loading a video needs one function."""

    @staticmethod
    def load_video_from_paths(paths, fps, timestamps):
        buffer = Buffer()
        buffer.paths, buffer.fps, buffer.timestamps = paths, fps, timestamps
        return buffer


def main(body, frames):
    with open(body) as file:
        request = ChatCompletionRequest(**json.load(file))
    enforce_local_media_policy(request.messages, frames)
    kind, guide = _normalize_guided_decoding(request.guided_decoding)
    budget, videos = LIMITS["max_image_tokens"], []
    for item in request.messages[1]["content"]:
        if item["type"] == "video":
            buffer, tokens, _, groups = load_video_buffer(
                Runtime, item, frame_limits=LIMITS, budget=budget
            )
            budget -= tokens
            videos.append({**vars(buffer), "tokens": tokens, "groups": groups})
    read = {
        "modalities": sorted(message_media_modalities(request.messages)),
        "guide": [kind, guide],
        "videos": videos,
        "budget_left": budget,
        "max_tokens": request.effective_max_tokens,
        "temperature": request.temperature,
        "enable_thinking": request.enable_thinking,
        "messages": request.messages,
    }
    json.dump(read, sys.stdout)


main(*sys.argv[1:])
