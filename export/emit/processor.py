"""The files beside a checkpoint's weights that text and frames are prepared with."""

from __future__ import annotations

from pathlib import Path

from autovla_rt.export.opened_model import OpenedModel

COPIED = (
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "special_tokens_map.json",
    "tokenizer_config.json",
    "video_preprocessor_config.json",
)
"""Files of the base folder that belong to the checkpoint, where they are there.

tokenizer.json is written anew and holds all that vocab.json, merges.txt and added_tokens.json do,
which in a base folder lack the actions.
"""


def emit_processor(model: OpenedModel, folder: Path) -> None:
    """Write tokenizer.json with the actions, and copy what the base folder has beside it."""
    for name in COPIED:
        if (model.base / name).is_file():
            (folder / name).write_bytes((model.base / name).read_bytes())
    (folder / "tokenizer.json").write_text(model.tokenizer.to_str(pretty=True), "utf-8")
