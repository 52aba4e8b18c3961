"""The request's prompt: the compiled prefix, and the text with speed, acceleration, instruction."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from autovla_rt.config import CompiledPrompt, Slot
from autovla_rt.errors import InputError
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
        plain = InstructionReader(tokenizer)
        # An instruction comes again in request after request.
        self._instruction = lru_cache(INSTRUCTIONS_KEPT)(plain)

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
        return np.concatenate([self._prefix, np.array(encoded(self._tokenizer, text), np.int64)])


class InstructionReader:
    """Makes an instruction what stands in the prompt."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._added = tokenizer.get_added_tokens_decoder()

    def __call__(self, text: str) -> str:
        """Return an instruction in lower case, as the training code writes it.

        Raises:
            InputError: it spells a special token or is no Unicode text.
        """
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
        added = (self._added.get(token_id) for token_id in encoded(self._tokenizer, lowered))
        special = next((token.content for token in added if token is not None), None)
        if special is not None:
            raise InputError(
                f"instruction {shown}: expected plain words, got the special token {special!r}, "
                "which would change the prompt's structure.\nRemove it."
            )
        return lowered


def encoded(tokenizer: Tokenizer, text: str) -> list[int]:
    """Return the token ids of a text, which may spell special tokens."""
    ids: list[int] = tokenizer.encode(text, add_special_tokens=False).ids
    return ids
