"""The request's prompt: the compiled prefix, and the text with speed, acceleration, instruction."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from autovla_rt.config import CompiledPrompt, Slot
from autovla_rt.errors import InputError
from autovla_rt.runtime.backends import Float
from autovla_rt.runtime.scene import Request

SHOWN = 60
"""Characters of an instruction that a message quotes."""

INSTRUCTIONS_KEPT = 16


class PromptEncoder:
    """Writes requests' values into one engine's prompt."""

    def __init__(self, prompt: CompiledPrompt, tokenizer: Tokenizer) -> None:
        self._prompt = prompt
        self._tokenizer = tokenizer
        self._prefix = np.array(prompt.prefix_ids, np.int64)
        self._added = tokenizer.get_added_tokens_decoder()
        # An instruction comes again in request after request.
        self._instruction = lru_cache(INSTRUCTIONS_KEPT)(self._checked)

    def ids(self, request: Request) -> NDArray[np.int64]:
        """Token ids [p] of the whole prompt of one request.

        The tail follows a special token, so encoding it alone gives the ids of encoding everything.

        Raises:
            InputError: the instruction spells a special token or is no Unicode text.
        """
        values = {
            "velocity": request.velocity,
            "acceleration": request.acceleration,
            "instruction": self._instruction(request.instruction),
        }
        text = "".join(
            format(values[part.slot], part.format) if isinstance(part, Slot) else part
            for part in self._prompt.tail
        )
        return np.concatenate([self._prefix, np.array(self._encode(text), np.int64)])

    def _encode(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def _checked(self, text: str) -> str:
        """Return an instruction as it stands in the prompt."""
        lowered = text.lower()
        shown = repr(text) if len(text) <= SHOWN else f"{text[:SHOWN]!r}..."
        try:
            lowered.encode()
        except UnicodeEncodeError as error:
            raise InputError(
                f"instruction {shown}: expected Unicode text, got the lone surrogate "
                f"{lowered[error.start]!r}, a byte that was not UTF-8.\n"
                "Give the instruction in UTF-8."
            ) from None
        added = (self._added.get(token_id) for token_id in self._encode(lowered))
        special = next((token.content for token in added if token is not None), None)
        if special is not None:
            raise InputError(
                f"instruction {shown}: expected plain words, got the special token {special!r}, "
                "which would change the prompt's structure.\nRemove it."
            )
        return lowered


def place_features(embeddings: Float, prompt: CompiledPrompt, features: dict[str, Float]) -> None:
    """Write each camera's visual features [count, hidden] over its placeholder embeddings."""
    for video in prompt.videos:
        embeddings[video.start : video.start + video.count] = features[video.camera]
