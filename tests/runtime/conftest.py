"""Shared by the runtime's tests: the real tokenizer, an answer format, and a scripted engine."""

import lzma
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from tokenizers import AddedToken, Tokenizer

from autovla_rt.config import ActionSpace, AnswerFormat, Slot
from autovla_rt.errors import CapacityError
from autovla_rt.runtime.grammar import Grammar, compile_answer

REPO = Path(__file__).resolve().parents[2]
NUM_ACTIONS = 2048
END = 151645

Rule = Callable[[tuple[int, ...]], np.ndarray]


class FakeEngine:
    """A LanguageEngine whose logits are any function of the whole token history.

    An embedding is [id, 0]; a hidden state is [number of its history, 1]. It is strict about the KV
    cache: over-long passes and truncations beyond the end fail.
    """

    def __init__(self, rule: Rule, capacity: int = 4096, action_start_id: int = 151665) -> None:
        self.rule = rule
        self.capacity = capacity
        self.action_start_id = action_start_id
        self.history: list[int] = []
        self.calls: list[tuple[str, int]] = []
        self._histories: list[tuple[int, ...]] = []

    prefix_length = 0
    works_ahead = False

    @property
    def length(self) -> int:
        return len(self.history)

    def embed(self, token_ids):
        assert token_ids.dtype == np.int64
        return np.stack([token_ids, np.zeros_like(token_ids)], axis=1).astype(np.float32)

    def extend(self, embeddings, last=None):
        assert embeddings.shape[0] > 0, "a pass without positions"
        if self.length + embeddings.shape[0] > self.capacity:
            raise CapacityError(f"{self.length} + {embeddings.shape[0]} > {self.capacity}")
        assert not embeddings[:, 1].any(), "these are hidden states, not embeddings"
        self.calls.append(("extend", embeddings.shape[0]))
        hidden = np.ones_like(embeddings)
        for row, token_id in enumerate(embeddings[:, 0]):
            self.history.append(int(token_id))
            hidden[row, 0] = len(self._histories)
            self._histories.append(tuple(self.history))
        return hidden if last is None else hidden[len(hidden) - last :]

    def truncate(self, length):
        assert 0 <= length <= self.length, "truncation beyond the end"
        self.calls.append(("truncate", self.length - length))
        del self.history[length:]

    def logits(self, hidden):
        self.calls.append(("logits", hidden.shape[0]))
        return self._rows(hidden)

    def choice_logits(self, hidden, token_ids):
        self.calls.append(("choice_logits", hidden.shape[0]))
        return self._rows(hidden)[:, list(token_ids)]

    def action_logits(self, hidden):
        self.calls.append(("action_logits", hidden.shape[0]))
        return self._rows(hidden, self.action_start_id)

    def _rows(self, hidden, start=0):
        return np.stack([self.rule(self._histories[int(n)])[start:] for n in hidden[:, 0]])

    def count(self, name: str) -> int:
        return sum(call == name for call, _ in self.calls)


def scripted(prompt_ids, answer_ids, vocab_size: int = 151665 + NUM_ACTIONS) -> Rule:
    """A model that writes `answer_ids` behind `prompt_ids`, and END once off the script."""
    prompt, script = tuple(prompt_ids), tuple(answer_ids)

    def rule(history):
        done = history[len(prompt) :]
        on_script = script[: len(done)] == done and len(done) < len(script)
        logits = np.zeros(vocab_size, np.float32)
        logits[script[len(done)] if on_script else END] = 10
        return logits

    return rule


@pytest.fixture(scope="session")
def fake_engine():
    """The class FakeEngine(rule, capacity)."""
    return FakeEngine


@pytest.fixture(scope="session")
def script():
    """The function scripted(prompt_ids, answer_ids) -> rule."""
    return scripted


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    """Qwen2.5's tokenizer with 2,048 action tokens from id 151665."""
    packed = REPO.parent / "shared" / "qwen2.5-vl-processor" / "tokenizer.json.xz"
    if not packed.exists():
        pytest.skip(f"Qwen2.5 tokenizer is not at {packed}")
    tokenizer = Tokenizer.from_str(lzma.decompress(packed.read_bytes()).decode())
    tokenizer.add_tokens([AddedToken(f"<action_{i}>", special=False) for i in range(NUM_ACTIONS)])
    return tokenizer


@pytest.fixture(scope="session")
def action_space() -> ActionSpace:
    return ActionSpace(action_start_id=151665, num_actions=NUM_ACTIONS)


@pytest.fixture(scope="session")
def answer_format() -> AnswerFormat:
    """Answers of the documented shape, in words of our own."""
    actions, reasoning = Slot(slot="actions"), Slot(slot="reasoning")
    close = "\n</think>\n<answer>\nThe planned motion is: "
    return AnswerFormat(
        direct=("<answer>\nThe planned motion is: ", actions, "\n</answer>"),
        fast=("<think>\nThis scene is an easy one, so I act.", close, actions, "\n</answer>"),
        slow=(
            "<think>\nThis scene is a hard one, so I reflect on it.\n",
            reasoning,
            close,
            actions,
            "\n</answer>",
        ),
    )


@pytest.fixture(scope="session")
def cot_grammar(tokenizer, answer_format, action_space) -> Grammar:
    return compile_answer(
        tokenizer, answer_format, use_cot=True, actions=action_space, end_token_id=END
    )


@pytest.fixture(scope="session")
def direct_grammar(tokenizer, answer_format, action_space) -> Grammar:
    return compile_answer(
        tokenizer, answer_format, use_cot=False, actions=action_space, end_token_id=END
    )
