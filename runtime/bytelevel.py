"""Bytes of byte-level BPE tokens (GPT-2's alphabet, which Qwen's tokenizer uses)."""

from __future__ import annotations

import codecs
from itertools import count

from tokenizers import Tokenizer

_PRINTABLE = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}


def _alphabet() -> dict[str, int]:
    """Map each character of a token's string to its byte.

    Printable Latin-1 bytes stand for themselves; the others take U+0100 onwards, in their order.
    """
    spare = count(0x100)
    return {chr(byte if byte in _PRINTABLE else next(spare)): byte for byte in range(256)}


_BYTE_OF = _alphabet()


def token_bytes(tokenizer: Tokenizer, token_id: int) -> bytes:
    """Return the bytes that a base token spells, which may be part of a UTF-8 character."""
    return bytes(_BYTE_OF[character] for character in tokenizer.id_to_token(token_id))


def ends_mid_character(data: bytes) -> bool:
    """Tell whether the last UTF-8 character of `data` is incomplete (stray bytes do not count)."""
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    decoder.decode(data)
    pending, _ = decoder.getstate()
    return bool(pending)
