"""XGrammar with a tokenizer's vocabulary, as TensorRT Edge-LLM's guided decoding sets it up."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from tokenizers import Tokenizer

from autovla_rt.runtime.bytelevel import token_bytes

xgrammar = pytest.importorskip("xgrammar")


class Guide:
    """Compiles guides for one vocabulary, and matches answers with them.

    Tokens are given as their bytes, added ones as their text; nothing is special but the ends.
    """

    def __init__(
        self, tokenizer: Tokenizer, end_token_ids: list[int], rows: list[int] | None = None
    ) -> None:
        added = tokenizer.get_added_tokens_decoder()
        ids = range(tokenizer.get_vocab_size()) if rows is None else rows
        spelled = [
            added[of].content.encode() if of in added else token_bytes(tokenizer, of) for of in ids
        ]
        self.ends = [list(ids).index(of) for of in end_token_ids]
        self.size = len(spelled)
        self._compiler = xgrammar.GrammarCompiler(
            xgrammar.TokenizerInfo(
                spelled,
                xgrammar.VocabType.RAW,
                vocab_size=self.size,
                stop_token_ids=self.ends,
                add_prefix_space=False,
            )
        )

    def ebnf(self, guide: str) -> Matcher:
        return Matcher(self._compiler.compile_grammar(guide), self.size)

    def regex(self, guide: str) -> Matcher:
        return Matcher(self._compiler.compile_regex(guide), self.size)


class Matcher:
    """One answer, token by token."""

    def __init__(self, grammar: object, size: int) -> None:
        self._grammar = grammar
        self._matcher = xgrammar.GrammarMatcher(grammar)
        self._mask = xgrammar.allocate_token_bitmask(1, size)
        self._size = size

    def allowed(self) -> NDArray[np.int64]:
        """The ids that may follow."""
        self._matcher.fill_next_token_bitmask(self._mask)
        bits = np.unpackbits(self._mask.numpy().view(np.uint8), bitorder="little")
        return np.flatnonzero(bits[: self._size])

    def accepts(self, ids: list[int]) -> bool:
        """Whether these ids, from the answer's beginning on, are a whole answer with its end."""
        self._matcher = xgrammar.GrammarMatcher(self._grammar)
        return all(map(self._matcher.accept_token, ids)) and self._matcher.is_terminated()

    def accept(self, token_id: int) -> bool:
        return self._matcher.accept_token(token_id)
