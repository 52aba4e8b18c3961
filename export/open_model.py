"""Gather what belongs to a checkpoint: config, base folder, tokenizer, codebook and recipe."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from autovla_rt.config import ActionSpace, Recipe
from autovla_rt.errors import CheckpointError, CodebookError, RecipeError
from autovla_rt.export.checkpoint import Checkpoint, check_vocabulary, open_checkpoint
from autovla_rt.export.codebook import read_codebook
from autovla_rt.export.model_config import read_geometry, read_preprocessing
from autovla_rt.export.opened_model import OpenedModel
from autovla_rt.export.recipe import read_recipe
from autovla_rt.export.recipes.checkout import PROMPT_FILE
from autovla_rt.export.tokenizer import end_token_ids, load_tokenizer
from autovla_rt.export.training_config import (
    TrainingConfig,
    check_agrees,
    read_training_config,
)

BASE_VOCABULARY = 151_936
"""Rows of Qwen2.5-VL's own embedding: a model that was never resized for actions."""


@dataclass(frozen=True)
class ModelFiles:
    """Where the user's files are; None is found from the training config.

    `config` is the official YAML. `base` is the Hugging Face folder with config.json, tokenizer
    and preprocessing (default: the checkpoint itself if it is a folder, else the config's base).
    `add_vision_id` writes "Video N: " before each video, for checkpoints trained with a
    transformers newer than the official pin.
    """

    checkpoint: Path
    config: Path
    base: Path | None = None
    codebook: Path | None = None
    recipe: Path | None = None
    add_action_tokens: bool = False
    add_vision_id: bool = False


def open_model(files: ModelFiles) -> OpenedModel:
    """Open everything and verify that it belongs together. The caller closes `checkpoint`.

    Raises:
        CheckpointError: a file is missing or unreadable, or checkpoint, vocabulary, tokenizer and
            config contradict each other.
        RecipeError, CodebookError: likewise for recipe and codebook.
    """
    if not files.checkpoint.exists():
        raise CheckpointError(
            f"{files.checkpoint}: no such file or folder. Expected a Hugging Face folder with "
            "safetensors, or a Lightning .ckpt file."
        )
    config = read_training_config(files.config)
    base = files.base or (files.checkpoint if files.checkpoint.is_dir() else config.model_folder())
    checkpoint = open_checkpoint(files.checkpoint, geometry=read_geometry(base), lora=config.lora)
    try:
        check_agrees(config, checkpoint.stated_config, files.checkpoint)
        return _assemble(files, config, base, checkpoint)
    except BaseException:
        checkpoint.close()
        raise


def _assemble(
    files: ModelFiles, config: TrainingConfig, base: Path, checkpoint: Checkpoint
) -> OpenedModel:
    codebook_file = files.codebook or config.codebook_file()
    codebook = read_codebook(codebook_file)
    vocabulary = checkpoint.geometry.language.vocab_size
    num_actions = vocabulary - config.action_start_id
    if num_actions <= 0 or vocabulary == BASE_VOCABULARY:
        check_vocabulary(vocabulary, config.action_start_id, len(codebook))
    tokenizer = load_tokenizer(
        base,
        action_start_id=config.action_start_id,
        num_actions=num_actions,
        add_action_tokens=files.add_action_tokens or not files.checkpoint.is_dir(),
    )
    if len(codebook) != num_actions:
        raise CodebookError(
            f"{codebook_file}: expected {num_actions} entries, one for each action token of "
            f"{files.checkpoint} (vocabulary {vocabulary}, action_start_id "
            f"{config.action_start_id}), got {len(codebook)}. Pass --codebook the file that the "
            "checkpoint was trained with."
        )
    return OpenedModel(
        checkpoint=checkpoint,
        geometry=checkpoint.geometry,
        tokenizer=tokenizer,
        end_token_ids=end_token_ids(base, tokenizer),
        preprocessing=read_preprocessing(base, config.min_pixels, config.max_pixels),
        actions=ActionSpace(
            action_start_id=config.action_start_id,
            num_actions=num_actions,
            num_poses=config.num_poses,
            dt=config.interval_length,
        ),
        codebook=codebook,
        recipe=_recipe(files),
        use_cot=config.use_cot,
        base=base,
    )


def _recipe(files: ModelFiles) -> Recipe:
    recipe = read_recipe(files.recipe or _checkout_of(files.config))
    return recipe.model_copy(update={"add_vision_id": True}) if files.add_vision_id else recipe


def _checkout_of(config: Path) -> Path:
    """Find the training checkout that a config lies in.

    Raises:
        RecipeError: none of the config's parent folders is one.
    """
    for folder in config.absolute().parents:
        if (folder / PROMPT_FILE).is_file():
            return folder
    raise RecipeError(
        f"{config}: lies in no AutoVLA checkout (none of its parent folders has "
        f"{PROMPT_FILE}), so the prompt's wording is unknown. Pass --recipe the checkout or a "
        ".toml file; demo/recipe.toml is an example."
    )
