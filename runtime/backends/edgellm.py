"""Requests to TensorRT Edge-LLM's server and its answers.

Edge-LLM serves whole requests: preprocessing, prompt, decoding. So nothing here computes; a request
is written with frames as training saw them and our grammar as its guide, and the text that comes
back is read by the same grammar. The body is of `tensorrt-edgellm-serve`'s /v1/chat/completions
(OpenAI's, with `guided_decoding`), release 0.11.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tokenizers import Tokenizer

from autovla_rt.config import Video
from autovla_rt.edgellm import (
    CHECKPOINT_FOLDER,
    CODEBOOK_FILE,
    GUIDES_FOLDER,
    RECORD,
    ServedModel,
)
from autovla_rt.errors import BundleError, InputError
from autovla_rt.runtime.actions import Codebook
from autovla_rt.runtime.decoding_options import DEFAULT_THINKING_TOKEN_BUDGET
from autovla_rt.runtime.edgellm_guide import AUTO, regular_expression
from autovla_rt.runtime.frames import FramePreprocessor
from autovla_rt.runtime.grammar import render
from autovla_rt.runtime.prompt import InstructionReader
from autovla_rt.runtime.scene import Request

FRAMES_PER_SECOND = 2.0
"""Of a request's frames. Edge-LLM derives the temporal rotary positions from it."""

SHOWN = 200
"""Characters of an unreadable answer that a message quotes."""

ACTION = re.compile(r"<action_(\d+)>")

Message = dict[str, Any]


@dataclass(frozen=True, eq=False)
class ServedPlan:
    """A plan that a server answered with.

    Attributes:
        mode: "fast", "slow" or "direct".
        reasoning: What the model wrote before it acted; "" if nothing.
        actions: int64 [num_poses] indices of the action vocabulary.
        poses: float64 [num_poses, 3]: x, y, heading in the ego frame, metres and radians.
    """

    mode: str
    reasoning: str
    actions: NDArray[np.int64]
    poses: NDArray[np.float64]


class EdgeLLM:
    """Writes requests for one exported model and reads its answers."""

    def __init__(
        self,
        model: ServedModel,
        guides: Mapping[str, Mapping[str, str]],
        tokenizer: Tokenizer,
        codebook: Codebook,
    ) -> None:
        self.model = model
        self._guides = guides
        self._codebook = codebook
        self._instruction = InstructionReader(tokenizer)
        self._frames = FramePreprocessor(model.preprocessing, model.vision)
        self._answers = {
            mode: re.compile(regular_expression(model.answer, mode, model.actions, captures=True))
            for mode in guides
            if mode != AUTO
        }

    @classmethod
    def load(cls, folder: Path) -> EdgeLLM:
        """Read what `autovla-rt export edgellm` wrote.

        Raises:
            BundleError: a file is missing or unreadable.
            CodebookError: likewise of the codebook.
        """
        try:
            model = ServedModel.model_validate_json((folder / RECORD).read_bytes())
            guides = {
                mode: json.loads((folder / GUIDES_FOLDER / f"{mode}.json").read_bytes())
                for mode in model.answer_tokens
            }
            tokenizer = Tokenizer.from_file(str(folder / CHECKPOINT_FOLDER / "tokenizer.json"))
        except Exception as error:  # of a damaged file tokenizers raises nothing narrower
            raise BundleError(
                f"{folder}: expected what autovla-rt export edgellm wrote, got {error}.\n"
                "Export it again."
            ) from error
        codebook = Codebook.load(folder / CODEBOOK_FILE, model.actions.num_actions)
        return cls(model, guides, tokenizer, codebook)

    def body(
        self,
        request: Request,
        frames: Path,
        mode: str | None = None,
        thinking_token_budget: int = DEFAULT_THINKING_TOKEN_BUDGET,
    ) -> dict[str, Any]:
        """Write a request's frames as files, resized as in training, and return its body.

        Args:
            request: What is asked.
            frames: Folder for the frames, which the server must be allowed to read.
            mode: As in `body_with`, which raises too.
            thinking_token_budget: Most tokens of reasoning.

        Raises:
            InputError: unusable frames.
            OSError: they cannot be written.
        """
        resized = self._frames.prepared(request.frames, self.model.cameras)
        paths = {
            camera: [
                _written(frames / f"{camera}_{index}.png", frame.pixels)
                for index, frame in enumerate(of)
            ]
            for camera, of in resized.items()
        }
        return self.body_with(request, paths, mode, thinking_token_budget)

    def body_with(
        self,
        request: Request,
        paths: Mapping[str, list[str]],
        mode: str | None = None,
        thinking_token_budget: int = DEFAULT_THINKING_TOKEN_BUDGET,
    ) -> dict[str, Any]:
        """Return a request's body whose frames, resized, are files.

        Greedy, as our own decoding. Edge-LLM cuts an answer at `max_tokens` and does not close its
        reasoning: with a budget that is too small a slow answer has no plan.

        Args:
            request: What is asked; its frames are not looked at.
            paths: Each camera's frames, oldest first.
            mode: "auto", "fast" or "slow", without chain of thought "direct"; None is the first of
                what the checkpoint has.
            thinking_token_budget: Most tokens of reasoning.

        Raises:
            InputError: an unusable instruction or mode.
        """
        mode = mode or next(iter(self._guides))
        if mode not in self._guides:
            raise InputError(f"mode {mode!r}: expected one of {', '.join(self._guides)}.")
        reasons = mode in (AUTO, "slow")
        budget = thinking_token_budget if reasons else 0
        return {
            "messages": self.messages(request, paths),
            "guided_decoding": self._guides[mode],
            "max_tokens": self.model.answer_tokens[mode] + budget,
            "temperature": 0.0,
            "enable_thinking": False,
        }

    def messages(self, request: Request, paths: Mapping[str, list[str]]) -> list[Message]:
        """Return the prompt as messages; `paths` are each camera's frames, oldest first.

        Raises:
            InputError: the instruction spells a special token or is no Unicode text.
        """
        values: dict[str, str | float] = {
            "velocity": request.velocity,
            "acceleration": request.acceleration,
            "instruction": self._instruction(request.instruction),
        }
        return [
            {"role": "system", "content": self.model.prompt.system},
            {"role": "user", "content": list(self._parts(values, paths))},
        ]

    def plan(self, text: str) -> ServedPlan:
        """Read the content of an answer.

        Raises:
            InputError: it is no whole answer of the checkpoint's grammar, so there is no plan.
        """
        for mode, pattern in self._answers.items():
            if found := pattern.fullmatch(text):
                groups = found.groupdict()
                actions = np.array(ACTION.findall(groups["actions"]), np.int64)
                reasoning = groups.get("reasoning", "").removesuffix("\n")
                return ServedPlan(mode, reasoning, actions, self._codebook.decode(actions))
        raise InputError(
            f"the server's answer: expected {' or '.join(self._answers)} with "
            f"{self.model.actions.num_poses} actions, got {text[:SHOWN]!r}.\n"
            "Look at its finish_reason: with 'length', max_tokens was too small for the reasoning."
        )

    def _parts(
        self, values: dict[str, str | float], paths: Mapping[str, list[str]]
    ) -> Iterator[Message]:
        number = 0
        for part in self.model.prompt.user:
            if not isinstance(part, Video):
                yield _text(render(part, **values))
                continue
            number += 1
            if self.model.add_vision_id:  # as the template would, which is not told to
                yield _text(f"Video {number}: ")
            yield {
                "type": "video",
                "frames": paths[part.camera],
                "fps": FRAMES_PER_SECOND,
                "do_resize": False,
            }


def _text(text: str) -> Message:
    return {"type": "text", "text": text}


def _written(path: Path, pixels: NDArray[np.uint8]) -> str:
    """Write a frame without loss; uncompressed, which takes least time."""
    Image.fromarray(pixels).save(path, compress_level=0)
    return str(path)
