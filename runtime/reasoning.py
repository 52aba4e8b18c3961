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

        An incomplete UTF-8 tail is dropped, and a line end that is already there serves as the
        closing's own. Joining ids before a line end is not exact (`.` and `\n` are one token), so
        text and closing are encoded together, and what the KV cache holds is kept up to where the
        two agree. For ids that the tokenizer would not have chosen (sampling can draw them, or text
        that spells an added token) this would roll back far or change the text: there the closing
        is joined.

        Returns:
            How many of the ids stay, and the ids that follow up to the first action. Together they
            are at most `positions` more than `reasoning`.
        """
        whole = self._whole_characters(reasoning)
        held = tuple(reasoning[:whole])
        kept, closing = self._encoded(held)
        if self._is_faithful(held, kept, closing):
            return kept, closing
        return whole, self._joined(held)

    def _encoded(self, held: Ids) -> tuple[int, Ids]:
        """Encode text and closing together; returns the common length and the rest."""
        close = self.close_text[1:] if self._at_line_start(held) else self.close_text
        encoded = self.tokenizer.encode(self._decode(held) + close, add_special_tokens=False).ids
        differing = (i for i, (a, b) in enumerate(zip(held, encoded, strict=False)) if a != b)
        kept = next(differing, min(len(held), len(encoded)))
        return kept, tuple(encoded[kept:])

    def _is_faithful(self, held: Ids, kept: int, closing: Ids) -> bool:
        """Tell whether encoding kept the text, the legal ids, the positions and most of the KV."""
        joined = self._joined(held)
        forced = (self.closer_id, *self.closing)
        return (
            len(held) - kept <= MAX_ROLLBACK
            and kept + len(closing) <= len(held) + len(joined)
            and closing[-len(forced) :] == forced
            and all(self.legal[i] for i in closing[: -len(forced)])
            and self._decode(held[:kept] + closing) == self._decode(held + joined)
        )

    def _joined(self, held: Ids) -> Ids:
        return (self.closer_id, *self.closing) if self._at_line_start(held) else self.joined

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
