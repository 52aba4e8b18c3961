"""Free reasoning: which ids it may hold, where it ends, and how it is cut short."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from autovla_rt.runtime.bytelevel import ends_mid_character, token_bytes

Ids = tuple[int, ...]

CLOSER = "</"
"""The token that ends reasoning where it opens a line; behind a line end it is never merged."""

MAX_ROLLBACK = 4
"""Most ids that a cut may take back to follow the tokenizer's own segmentation (seen: 2)."""


@dataclass(frozen=True, eq=False)
class Free:
    """Free reasoning up to the line that opens with `</`, and the literal that closes it.

    Attributes:
        tokenizer: The checkpoint's byte-level BPE tokenizer.
        closer_id: The token `</`.
        closing: The forced ids behind the closer, up to the first action.
        joined: The whole closing (line end, closer, rest) encoded by itself.
        close_text: What `joined` spells.
        on_new_line: Whether the reasoning begins on a line of its own.
        legal: [vocab_size] bool, true for the base vocabulary's text tokens: no added token
            (special, end, action) and no id without a token.
        legal_ids: The same as int64 ids.
    """

    tokenizer: Tokenizer = field(repr=False)
    closer_id: int
    closing: Ids
    joined: Ids
    close_text: str
    on_new_line: bool
    legal: NDArray[np.bool_] = field(repr=False)
    legal_ids: NDArray[np.int64] = field(repr=False)

    @property
    def positions(self) -> int:
        """KV positions that closing takes at most, whatever the reasoning."""
        return len(self.joined)

    def closes(self, reasoning: Sequence[int], token_id: int) -> bool:
        """Tell whether `token_id` behind these reasoning ids ends the reasoning."""
        return token_id == self.closer_id and self._at_line_start(reasoning)

    def text(self, reasoning: Sequence[int]) -> str:
        """Decode reasoning ids, without half a character and without the closing's own line end."""
        return self._decode(reasoning[: self._whole_characters(reasoning)]).removesuffix("\n")

    def cut(self, reasoning: Sequence[int]) -> tuple[int, Ids]:
        r"""End reasoning that was stopped anywhere, as the tokenizer would have written it.

        An incomplete UTF-8 tail is dropped. Behind a line end, which serves as the closing's own,
        the closer is joined. Joining before a line end is not exact (`.` and `\n` are one token):
        there text and closing are encoded together, and what the KV cache holds is kept up to where
        the two agree. For ids that the tokenizer would not have chosen (sampling can draw them, or
        text that spells an added token) this would roll back far or change the text: they keep the
        closing as encoded by itself.

        Returns:
            How many of the ids stay, and the ids that follow up to the first action. Together they
            are at most `positions` more than `reasoning`.
        """
        held = tuple(reasoning[: self._whole_characters(reasoning)])
        if self._at_line_start(held):
            return len(held), (self.closer_id, *self.closing)
        text = self._decode(held) + self.close_text
        encoded = tuple(self.tokenizer.encode(text, add_special_tokens=False).ids)
        kept = _common_length(held, encoded)
        is_exact = (
            len(held) - kept <= MAX_ROLLBACK
            and len(encoded) <= len(held) + self.positions
            and all(self.legal[i] for i in encoded[kept:])
            and self._decode(encoded) == text
        )
        return (kept, encoded[kept:]) if is_exact else (len(held), self.joined)

    def _at_line_start(self, reasoning: Sequence[int]) -> bool:
        if not reasoning:
            return self.on_new_line
        return token_bytes(self.tokenizer, reasoning[-1]).endswith(b"\n")

    def _whole_characters(self, reasoning: Sequence[int]) -> int:
        """Count the ids before an incomplete UTF-8 tail (three bytes, so four tokens show it)."""
        count = len(reasoning)
        while count and ends_mid_character(
            b"".join(token_bytes(self.tokenizer, i) for i in reasoning[max(0, count - 4) : count])
        ):
            count -= 1
        return count

    def _decode(self, ids: Sequence[int]) -> str:
        text: str = self.tokenizer.decode(list(ids), skip_special_tokens=False)
        return text


def _common_length(left: Ids, right: Ids) -> int:
    shorter = min(len(left), len(right))
    return next((i for i in range(shorter) if left[i] != right[i]), shorter)
