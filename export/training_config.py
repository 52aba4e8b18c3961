"""The YAML config that an AutoVLA checkpoint was trained with."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt, ValidationError

from autovla_rt.errors import CheckpointError
from autovla_rt.export.tensors.lora import LoraSettings, find_lora_settings

_HORIZON_TOLERANCE = 1e-6

_MARK_OF_CHECKOUT = "models/autovla.py"
_MAX_PARENTS = 4
"""How far above the config a checkout's root can lie (config/training/... has two or three)."""

_MODEL_KEY = "model.pretrained_model_path"
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")

_ADVICE = "Correct the path in the config, or give its place on the command line."
_HUB_ADVICE = (
    "If it is a Hugging Face id (it looks like one), download it (hf download {}) and pass --base "
    "the folder; nothing is downloaded here.\n"
)

_WRITTEN_AT_TRAINING = (
    "use_cot",
    "action_start_id",
    "num_poses",
    "interval_length",
    "min_pixels",
    "max_pixels",
)
"""The fields whose values were trained into the weights."""


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
        return self._resolve(_MODEL_KEY, self.pretrained_model_path)

    def codebook_file(self) -> Path:
        """Find the action codebook.

        Raises:
            CheckpointError: there is no such file; the message lists the places tried.
        """
        return self._resolve("model.codebook_cache_path", self.codebook_cache_path)

    def _resolve(self, key: str, text: str) -> Path:
        """Try the config's folder, its parents up to the checkout's root, then the cwd."""
        try:
            path = Path(text).expanduser()
        except RuntimeError as error:  # ~somebody, who is no user of this machine
            raise CheckpointError(f"{self.path}: {key} is {text}: {error} {_ADVICE}") from None
        folders = [*_folders_up_to_checkout(self.path), Path.cwd()]
        candidates = list(dict.fromkeys(folder / path for folder in folders))
        for candidate in candidates:
            if candidate.exists():
                return candidate
        tried = "\n".join(map(str, candidates))
        is_hub_id = key == _MODEL_KEY and _HUB_ID.fullmatch(text)
        hub = _HUB_ADVICE.format(text) if is_hub_id else ""
        raise CheckpointError(
            f"{self.path}: {key} is {text}, which is at none of these places:\n{tried}\n{hub}"
            f"{_ADVICE}"
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


def check_agrees(config: TrainingConfig, stated: Mapping[str, Any] | None, source: Path) -> None:
    """Verify that a config is the one that the checkpoint `source` says it was trained with.

    `stated` is the checkpoint's own (`Checkpoint.stated_config`), with the same dotted keys at its
    root or under one key, such as `config`. Keys that it lacks, and values that are no number
    (such as an interpolation left unresolved), say nothing and are ignored.

    Raises:
        CheckpointError: a value that was trained into the weights differs.
    """
    differences = []
    section = _section_with_model(stated or {})
    for name in _WRITTEN_AT_TRAINING:
        key = str(TrainingConfig.model_fields[name].alias)
        given, trained = getattr(config, name), _find(section, key)
        if isinstance(trained, bool | int | float) and trained != given:
            differences.append(f"{key}: {given} in {config.path}, {trained} in the checkpoint")
    if differences:
        lines = "\n".join(differences)
        raise CheckpointError(
            f"{source}: was trained with another config than the one given, by its own "
            f"hyper_parameters:\n{lines}\nGive the config that it was trained with."
        )


def _section_with_model(stated: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the mapping that holds the config: the root, config, cfg, else the first that fits."""
    keys = [str(TrainingConfig.model_fields[name].alias) for name in _WRITTEN_AT_TRAINING]
    for section in (stated, stated.get("config"), stated.get("cfg"), *stated.values()):
        if isinstance(section, Mapping) and any(_find(section, key) is not None for key in keys):
            return section
    return {}


def _folders_up_to_checkout(config: Path) -> Iterator[Path]:
    for folder in config.absolute().parents[: 1 + _MAX_PARENTS]:
        yield folder
        if (folder / _MARK_OF_CHECKOUT).is_file():
            return


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
