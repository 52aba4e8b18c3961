"""The miniature's tokenizer: a small byte-level BPE that splits and speaks as Qwen2.5's does."""

from __future__ import annotations

import itertools
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.normalizers import NFC
from tokenizers.pre_tokenizers import ByteLevel, Sequence, Split
from tokenizers.trainers import BpeTrainer

RECIPE = Path(__file__).with_name("recipe.toml")

NUM_ACTIONS = 2048
MAX_TEXT_TOKENS = 1500
REPEATS = 200
"""Times that the recipe's texts stand in the corpus: enough for all their words to merge."""

# The order of Qwen2.5's added tokens, which follow the text tokens.
SPECIAL_TOKENS = (
    *("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>"),
    *("<|box_start|>", "<|box_end|>", "<|quad_start|>", "<|quad_end|>"),
    *("<|vision_start|>", "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>"),
)
PLAIN_ADDED_TOKENS = (
    *("<tool_call>", "</tool_call>", "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>"),
    *("<|fim_pad|>", "<|repo_name|>", "<|file_sep|>"),
)
QWEN_PRE_TOKENIZER = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CHAT_TEMPLATE = """\
{%- set seen = namespace(images=0, videos=0) -%}
{%- if messages[0].role != 'system' -%}
{{ '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' }}
{%- endif -%}
{%- for message in messages -%}
{{ '<|im_start|>' ~ message.role ~ '\\n' }}
{%- for part in ([{'text': message.content}] if message.content is string else message.content) -%}
{%- if part.type == 'image' or 'image' in part or 'image_url' in part -%}
{%- set seen.images = seen.images + 1 -%}
{{ ('Picture ' ~ seen.images ~ ': ') if add_vision_id else '' }}
{{- '<|vision_start|><|image_pad|><|vision_end|>' }}
{%- elif part.type == 'video' or 'video' in part -%}
{%- set seen.videos = seen.videos + 1 -%}
{{ ('Video ' ~ seen.videos ~ ': ') if add_vision_id else '' }}
{{- '<|vision_start|><|video_pad|><|vision_end|>' }}
{%- else -%}
{{ part.text }}
{%- endif -%}
{%- endfor -%}
{{ '<|im_end|>\\n' }}
{%- endfor -%}
{{ '<|im_start|>assistant\\n' if add_generation_prompt else '' }}"""


def train_tokenizer(lines: Iterable[str]) -> Tokenizer:
    """Return a byte-level BPE with Qwen2.5's pre-tokenizer and the action tokens as last ids."""
    tokenizer = Tokenizer(BPE())
    tokenizer.normalizer = NFC()
    # Without Qwen's split a BPE of so small a corpus would swallow whole phrases.
    tokenizer.pre_tokenizer = Sequence(
        [
            Split(Regex(QWEN_PRE_TOKENIZER), behavior="isolated"),
            ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = ByteLevelDecoder()
    trainer = BpeTrainer(
        vocab_size=MAX_TEXT_TOKENS,
        initial_alphabet=sorted(ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(lines, trainer)
    tokenizer.add_special_tokens([AddedToken(t, normalized=False) for t in SPECIAL_TOKENS])
    tokenizer.add_tokens([AddedToken(t, normalized=False) for t in PLAIN_ADDED_TOKENS])
    tokenizer.add_tokens([f"<action_{i}>" for i in range(NUM_ACTIONS)])
    return tokenizer


def corpus(narration: Iterable[str]) -> Iterator[str]:
    """Yield the recipe's texts many times, so that they merge well, and answers that narrate.

    `narration` gives the lines of reasoning, four an answer, and ends or not.
    """
    recipe = list(texts(tomllib.loads(RECIPE.read_text(encoding="utf-8"))))
    reasoning = iter(narration)
    for _ in range(REPEATS):
        yield from recipe
        yield from ("system\n", "user\n", "assistant\n")
        lines = "\n".join(itertools.islice(reasoning, 4))
        yield f"<think>\n{lines}\n</think>\n<answer>\nmotion\n</answer>"


def texts(node: Any) -> Iterator[str]:
    """Yield every text inside a TOML document."""
    if isinstance(node, str):
        yield node
    elif isinstance(node, Mapping):
        for value in node.values():
            yield from texts(value)
    elif isinstance(node, list):
        for value in node:
            yield from texts(value)


def tokenizer_config(tokenizer: Tokenizer) -> dict[str, Any]:
    """Return tokenizer_config.json as transformers writes it for Qwen2Tokenizer."""
    added = {
        str(index): {
            "content": token.content,
            "lstrip": token.lstrip,
            "normalized": token.normalized,
            "rstrip": token.rstrip,
            "single_word": token.single_word,
            "special": token.special,
        }
        for index, token in sorted(tokenizer.get_added_tokens_decoder().items())
    }
    return {
        "tokenizer_class": "Qwen2Tokenizer",
        "added_tokens_decoder": added,
        "additional_special_tokens": SPECIAL_TOKENS[1:],
        "add_bos_token": False,
        "add_prefix_space": False,
        "bos_token": None,
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "unk_token": None,
        "errors": "replace",
        "clean_up_tokenization_spaces": False,
        "split_special_tokens": False,
        "model_max_length": 4096,
        "chat_template": CHAT_TEMPLATE,
    }
