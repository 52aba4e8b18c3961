"""A JSON object on disk whose keys are read by path, so that a missing one can be named."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from autovla_rt.errors import CheckpointError


class JsonFile:
    """A JSON object read from a file.

    Raises:
        CheckpointError: the file is missing or no JSON object.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self.content = json.loads(path.read_text("utf-8"))
        except FileNotFoundError:
            raise CheckpointError(
                f"{path}: no such file. Give the Hugging Face folder of the model "
                "(of the base model where the checkpoint is a Lightning .ckpt)."
            ) from None
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{path}: expected a JSON object, got {error}.") from None
        if not isinstance(self.content, dict):
            raise CheckpointError(
                f"{path}: expected a JSON object, got {type(self.content).__name__}."
            )

    def find(self, *paths: str) -> Any:
        """Return the value at the first of several dotted paths that is there, else None."""
        for path in paths:
            value: Any = self.content
            for key in path.split("."):
                value = value.get(key) if isinstance(value, Mapping) else None
            if value is not None:
                return value
        return None
