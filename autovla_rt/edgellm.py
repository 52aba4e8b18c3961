"""What `export edgellm` writes for TensorRT Edge-LLM and `runtime/backends/edgellm.py` reads."""

from __future__ import annotations

from autovla_rt.config import (
    ActionSpace,
    AnswerFormat,
    Camera,
    Model,
    Preprocessing,
    Prompt,
    VisionGeometry,
)

RECORD = "autovla.json"
"""`ServedModel`, as JSON."""

CHECKPOINT_FOLDER = "checkpoint"
"""The unified checkpoint, its tokenizer and chat template: what Edge-LLM's tools are given."""

GUIDES_FOLDER = "guided_decoding"
"""`MODE.json`, each the `guided_decoding` of a request; `MODE.regex.json` the same by text."""

CODEBOOK_FILE = "codebook.safetensors"

VERSION = "0.11.0"
"""The release of tensorrt-edgellm that all of it was written for and tried with."""


class ServedModel(Model):
    """What a request is written from, and an answer read with.

    Attributes:
        prompt: The one that the checkpoint was trained with.
        answer: Its answers.
        add_vision_id: Whether "Video N: " stands before each video.
        cameras: In the order of the prompt, with the grids that engines are built for.
        preprocessing: Of frames.
        vision: Shape of the vision tower.
        actions: The action vocabulary.
        answer_tokens: Tokens of each mode's answer, its end among them, without reasoning.
    """

    prompt: Prompt
    answer: AnswerFormat
    add_vision_id: bool
    cameras: tuple[Camera, ...]
    preprocessing: Preprocessing
    vision: VisionGeometry
    actions: ActionSpace
    answer_tokens: dict[str, int]
