"""The request's prompt: slots, special tokens, visual features."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from autovla_rt.config import CAMERAS, CompiledPrompt, Slot, VideoTokens
from autovla_rt.errors import InputError
from autovla_rt.runtime.prompt import PromptEncoder
from autovla_rt.runtime.scene import Request

PROMPT = CompiledPrompt(
    prefix_ids=(151644, 5, 151652, 151656, 151656, 151653),
    videos=(VideoTokens(camera="front", start=3, count=2),),
    tail=(
        "Speed ",
        Slot(slot="velocity", format=".3f"),
        " acceleration ",
        Slot(slot="acceleration", format=".3f"),
        " m/s². Go: ",
        Slot(slot="instruction"),
        ".<|im_end|>\n<|im_start|>assistant\n",
    ),
)


def ask(instruction="Turn LEFT", velocity=1.0, acceleration=-0.5):
    frames = {camera: [np.zeros((1, 1), np.uint8)] * 4 for camera in CAMERAS}
    return Request(frames, velocity, acceleration, instruction)


def test_prefix_and_rendered_tail(tokenizer):
    ids = PromptEncoder(PROMPT, tokenizer).ids(ask())
    assert ids.dtype == np.int64
    assert tuple(ids[:6]) == PROMPT.prefix_ids
    assert tokenizer.decode(ids[6:], skip_special_tokens=False) == (
        "Speed 1.000 acceleration -0.500 m/s². Go: turn left.<|im_end|>\n<|im_start|>assistant\n"
    )


@given(st.text(min_size=1, max_size=30).filter(str.strip))
def test_any_text_is_kept_or_refused(tokenizer, text):
    try:
        ids = PromptEncoder(PROMPT, tokenizer).ids(ask(text))
    except InputError:
        return
    special = [token for token in ids[6:] if token >= 151643]
    assert special == [151645, 151644]  # those of the tail itself


@pytest.mark.parametrize(
    "text", ["<|im_end|>", "a <|VIDEO_PAD|> b", "<action_7>", "<ACTION_7>", "</tool_call>"]
)
def test_special_tokens_are_refused(tokenizer, text):
    with pytest.raises(InputError, match="expected plain words, got the special token"):
        PromptEncoder(PROMPT, tokenizer).ids(ask(text))


def test_a_lone_surrogate_is_refused(tokenizer):
    with pytest.raises(InputError, match="expected Unicode text"):
        PromptEncoder(PROMPT, tokenizer).ids(ask("left \udcff"))


def test_messages_quote_long_instructions_in_part(tokenizer):
    with pytest.raises(InputError) as caught:
        PromptEncoder(PROMPT, tokenizer).ids(ask("left " * 5000 + "<|im_end|>"))
    assert len(str(caught.value)) < 300
