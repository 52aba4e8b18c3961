"""The YAML config that an AutoVLA checkpoint was trained with."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt, ValidationError

from autovla_rt.errors import CheckpointError
from autovla_rt.export.tensors.lora import LoraSettings, find_lora_settings

_HORIZON_TOLERANCE = 1e-6


class TrainingConfig(BaseModel):
    """The settings of the training repository's YAML that an export needs.

    Every field's alias is its dotted path in the file. Areas are in pixels, times in seconds.
    """

    model_config = ConfigDict(frozen=True, strict=True, arbitrary_types_allowed=True)

    path: Path
    use_cot: bool = Field(alias="model.use_cot")
    pretrained_model_path: str = Field(alias="model.pretrained_model_path")
    codebook_cache_path: str = Field(alias="model.codebook_cache_path")
    num_poses: PositiveInt = Field(alias="model.trajectory.num_poses")
    interval_length: PositiveFloat = Field(alias="model.trajectory.interval_length")
    time_horizon: PositiveFloat = Field(alias="model.trajectory.time_horizon")
    action_start_id: PositiveInt = Field(alias="model.tokens.action_start_id")
    min_pixels: PositiveInt = Field(alias="model.video.min_pixels")
    max_pixels: PositiveInt = Field(alias="model.video.max_pixels")
    lora: LoraSettings | None

    def model_folder(self) -> Path:
        """Find the base model's Hugging Face folder.

        Raises:
            CheckpointError: there is no such folder; the message lists the places tried.
        """
        return self._resolve("model.pretrained_model_path", self.pretrained_model_path)

    def codebook_file(self) -> Path:
        """Find the action codebook.

        Raises:
            CheckpointError: there is no such file; the message lists the places tried.
        """
        return self._resolve("model.codebook_cache_path", self.codebook_cache_path)

    def _resolve(self, key: str, text: str) -> Path:
        """Try the config's folder, its parents (one is the checkout's root), then the cwd."""
        folders = [*self.path.absolute().parents, Path.cwd()]
        candidates = list(dict.fromkeys(folder / Path(text).expanduser() for folder in folders))
        for candidate in candidates:
            if candidate.exists():
                return candidate
        tried = "\n".join(map(str, candidates))
        raise CheckpointError(
            f"{self.path}: {key} is {text}, which is at none of these places:\n{tried}\n"
            "Correct the path in the config, or give its place on the command line."
        )


def read_training_config(path: Path) -> TrainingConfig:
    """Read the YAML that a checkpoint was trained with; keys of no use here are ignored.

    LoRA is found in both spellings: use/alpha (training) and use_lora/lora_alpha (agent).

    Raises:
        CheckpointError: the file is missing or no YAML mapping, lacks keys or has values of
            another type, or num_poses x interval_length is not time_horizon.
    """
    tree = _load(path)
    keys = [field.alias for field in TrainingConfig.model_fields.values() if field.alias]
    values = {key: value for key in keys if (value := _find(tree, key)) is not None}
    if missing := [key for key in keys if key not in values]:
        raise CheckpointError(
            f"{path}: missing {', '.join(missing)}. Give the YAML from the training repository's "
            "config folder that the checkpoint was trained with."
        )
    try:
        config = TrainingConfig.model_validate(
            {**values, "path": path, "lora": find_lora_settings(tree, str(path))}
        )
    except ValidationError as error:
        lines = "\n".join(
            f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}, got {fault['input']!r:.100}"
            for fault in error.errors()
        )
        raise CheckpointError(f"{path}: unusable values:\n{lines}") from None
    _check_horizon(config)
    return config


def _load(path: Path) -> Mapping[str, Any]:
    try:
        tree = yaml.safe_load(path.read_text("utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file. Give the training config (YAML).") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise CheckpointError(f"{path}: expected YAML, got: {error}") from None
    if not isinstance(tree, Mapping):
        raise CheckpointError(f"{path}: expected a YAML mapping, got {type(tree).__name__}.")
    return tree


def _find(tree: Any, key: str) -> Any:
    for part in key.split("."):
        tree = tree.get(part) if isinstance(tree, Mapping) else None
    return tree


def _check_horizon(config: TrainingConfig) -> None:
    product = config.num_poses * config.interval_length
    if abs(product - config.time_horizon) > _HORIZON_TOLERANCE:
        raise CheckpointError(
            f"{config.path}: model.trajectory has num_poses {config.num_poses} x interval_length "
            f"{config.interval_length:g} s = {product:g} s, but time_horizon "
            f"{config.time_horizon:g} s. Correct the one that is wrong."
        )
