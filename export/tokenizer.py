"""The tokenizer that a checkpoint was trained with, action tokens at their places."""

from __future__ import annotations

from pathlib import Path

from tokenizers import AddedToken, Tokenizer

from autovla_rt.errors import CheckpointError
from autovla_rt.export.files.json_file import JsonFile

IM_END = "<|im_end|>"
END_OF_TEXT = "<|endoftext|>"

REQUIRED_TOKENS = (
    "<|im_start|>",
    IM_END,
    END_OF_TEXT,
    "<|vision_start|>",
    "<|vision_end|>",
    "<|video_pad|>",
)
"""Special tokens that the prompt and the end of the answer are made of."""


def action_token(index: int) -> str:
    """Return the text of one action token."""
    return f"<action_{index}>"


def load_tokenizer(
    folder: Path, *, action_start_id: int, num_actions: int, add_action_tokens: bool
) -> Tokenizer:
    """Load tokenizer.json with `<action_0>` at `action_start_id` and the others after it.

    Args:
        folder: a Hugging Face folder.
        action_start_id: id of `<action_0>`.
        num_actions: action tokens in the codebook.
        add_action_tokens: append them, as training does with the base folder of a Lightning
            checkpoint; where they are there already, nothing is added.

    Raises:
        CheckpointError: tokenizer.json is missing or unreadable, lacks a special token of
            Qwen2.5-VL, lacks action tokens, or has them elsewhere.
    """
    path = folder / "tokenizer.json"
    tokenizer = _read(path)
    if absent := [text for text in REQUIRED_TOKENS if tokenizer.token_to_id(text) is None]:
        raise CheckpointError(
            f"{path}: no token {', '.join(absent)}. Give the folder of a Qwen2.5-VL model."
        )
    texts = [action_token(index) for index in range(num_actions)]
    if add_action_tokens:
        # The same flags as transformers' add_tokens(texts, special_tokens=False).
        tokenizer.add_tokens([AddedToken(text, special=False, normalized=True) for text in texts])
    _check_actions(path, tokenizer, texts, action_start_id)
    return tokenizer


def end_token_ids(folder: Path, tokenizer: Tokenizer) -> tuple[int, ...]:
    """Return the ids that end an answer, `<|im_end|>` first.

    Without that file they are `<|im_end|>` and `<|endoftext|>`, as in Qwen's own.

    Raises:
        CheckpointError: the file's eos_token_id lacks `<|im_end|>` or is no id of the tokenizer.
    """
    ids = tuple(tokenizer.token_to_id(text) for text in (IM_END, END_OF_TEXT))
    path = folder / "generation_config.json"
    if not path.exists():
        return ids
    stated = JsonFile(path).find("eos_token_id")
    listed = stated if isinstance(stated, list) else [stated]
    known = all(type(item) is int and tokenizer.id_to_token(item) is not None for item in listed)
    if not known or ids[0] not in listed:
        raise CheckpointError(
            f"{path}: eos_token_id is {stated!r}; expected ids of the tokenizer, with {IM_END} "
            f"({ids[0]}) among them. Give the folder that belongs to the tokenizer."
        )
    return ids[0], *(token for token in listed if token != ids[0])


def _read(path: Path) -> Tokenizer:
    if not path.is_file():
        raise CheckpointError(
            f"{path}: no such file. Give a Hugging Face folder with a fast tokenizer "
            "(tokenizer.json), such as the base model's."
        )
    try:
        return Tokenizer.from_file(str(path))
    # The Rust library raises Exception itself, with the reason as its text.
    except Exception as error:
        raise CheckpointError(f"{path}: not a tokenizer.json: {error}. Fetch it again.") from None


def _check_actions(
    path: Path, tokenizer: Tokenizer, texts: list[str], action_start_id: int
) -> None:
    """Verify that the action tokens, and no others, take the ids from `action_start_id` on."""
    ids = {text: tokenizer.token_to_id(text) for text in texts}
    for index, (text, token_id) in enumerate(ids.items()):
        if token_id not in (None, action_start_id + index):
            raise CheckpointError(
                f"{path}: {text} has id {token_id}, expected {action_start_id + index} "
                f"(action_start_id {action_start_id} + {index}). Tokenizer and training config "
                "(model.tokens.action_start_id) do not belong together."
            )
    if absent := [text for text, token_id in ids.items() if token_id is None]:
        raise CheckpointError(
            f"{path}: {len(absent)} of {len(texts)} action tokens are not there, {absent[0]} "
            "first.\nIf this is the base model's tokenizer, pass --add-action-tokens (training "
            "added them in memory); otherwise give the folder that was saved with the trained "
            "tokenizer."
        )
    after = tokenizer.id_to_token(action_start_id + len(texts))
    if after is not None:
        raise CheckpointError(
            f"{path}: {after} follows the last of {len(texts)} action tokens, expected none. "
            "Tokenizer and codebook do not belong together."
        )
