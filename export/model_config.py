"""Geometry and preprocessing as the JSON files of a Qwen2.5-VL folder state them."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from autovla_rt.config import Geometry, Preprocessing
from autovla_rt.errors import CheckpointError
from autovla_rt.export.files.json_file import JsonFile

ARCHITECTURE = "Qwen2_5_VLForConditionalGeneration"
MODEL_TYPE = "qwen2_5_vl"

Keys = dict[str, tuple[str, ...]]


def _text(*keys: str) -> tuple[str, ...]:
    """Look in text_config (newer transformers) before the top level (4.49)."""
    return (*(f"text_config.{key}" for key in keys), *keys)


# Values that change the computation and that are implemented in one way only.
_FIXED: tuple[tuple[tuple[str, ...], tuple[Any, ...]], ...] = (
    (_text("hidden_act"), ("silu",)),
    (("vision_config.hidden_act",), ("silu",)),
    (_text("use_sliding_window"), (False,)),
    # transformers rewrites the hub's "mrope" to "default" and keeps the sections.
    (_text("rope_scaling.rope_type", "rope_scaling.type"), ("mrope", "default")),
    (_text("rope_parameters.rope_type"), ("default",)),
)

_VISION_COUNTS: Keys = {
    "depth": ("vision_config.depth",),
    "hidden_size": ("vision_config.hidden_size",),
    "num_heads": ("vision_config.num_heads",),
    "intermediate_size": ("vision_config.intermediate_size",),
    "out_hidden_size": ("vision_config.out_hidden_size",),
    # The hub's file says in_chans, transformers writes in_channels.
    "in_channels": ("vision_config.in_channels", "vision_config.in_chans"),
    "patch_size": ("vision_config.patch_size",),
    "temporal_patch_size": ("vision_config.temporal_patch_size",),
    "spatial_merge_size": ("vision_config.spatial_merge_size",),
    "window_size": ("vision_config.window_size",),
}

_VISION: Keys = {
    "fullatt_block_indexes": ("vision_config.fullatt_block_indexes",),
    "tokens_per_second": ("vision_config.tokens_per_second",),
}

_LANGUAGE_COUNTS: Keys = {
    "hidden_size": _text("hidden_size"),
    "num_hidden_layers": _text("num_hidden_layers"),
    "num_attention_heads": _text("num_attention_heads"),
    "num_key_value_heads": _text("num_key_value_heads"),
    "intermediate_size": _text("intermediate_size"),
    "vocab_size": _text("vocab_size"),
}

_LANGUAGE: Keys = {
    "rms_norm_eps": _text("rms_norm_eps"),
    "rope_theta": _text("rope_theta", "rope_parameters.rope_theta"),
    "mrope_section": _text("rope_scaling.mrope_section", "rope_parameters.mrope_section"),
    "tie_word_embeddings": _text("tie_word_embeddings"),
}

_PREPROCESSING: Keys = {"image_mean": ("image_mean",), "image_std": ("image_std",)}

_NOTES = {
    "vision_config.tokens_per_second": (
        "It is 2 in the published Qwen2.5-VL models, but 4 by transformers' default, so its "
        "absence cannot be filled in: add it as the model was trained."
    ),
}

Schema = TypeVar("Schema", bound=BaseModel)


def read_geometry(folder: Path) -> Geometry:
    """Read config.json of a Qwen2.5-VL folder, flat (transformers 4.49) or with text_config.

    `vocab_size` is what the file states: for a base folder the one from before the action tokens.

    Raises:
        CheckpointError: the file is missing, is of another architecture, lacks a key or has one of
            another type, or asks for a computation that is not implemented.
    """
    config = JsonFile(folder / "config.json")
    _check_architecture(config)
    _check_fixed_values(config)
    vision = {**_counts(config, _VISION_COUNTS), **_values(config, _VISION)}
    counts = _counts(config, _LANGUAGE_COUNTS)
    head_dim = config.find(*_text("head_dim"))
    if head_dim is None:
        head_dim = counts["hidden_size"] // counts["num_attention_heads"]
    language = {**counts, **_values(config, _LANGUAGE), "head_dim": head_dim}
    geometry = _validated(config, Geometry, {"vision": vision, "language": language})
    _check_consistency(config.path, geometry)
    return geometry


def read_preprocessing(folder: Path, min_pixels: int, max_pixels: int) -> Preprocessing:
    """Read the normalisation from preprocessor_config.json; pixel bounds come from training.

    Args:
        folder: the Hugging Face folder.
        min_pixels: least area of a resized frame, in pixels, from the training config.
        max_pixels: greatest area of a resized frame, in pixels, from the training config.

    Raises:
        CheckpointError: the file is missing or lacks image_mean or image_std.
    """
    config = JsonFile(folder / "preprocessor_config.json")
    return _validated(
        config,
        Preprocessing,
        {**_values(config, _PREPROCESSING), "min_pixels": min_pixels, "max_pixels": max_pixels},
    )


def _check_architecture(config: JsonFile) -> None:
    architectures = config.find("architectures")
    model_type = config.find("model_type")
    if architectures != [ARCHITECTURE] and (architectures or model_type != MODEL_TYPE):
        raise CheckpointError(
            f"{config.path}: expected the architecture {ARCHITECTURE} (AutoVLA's base), "
            f"got {architectures or model_type!r}. Give the folder of a Qwen2.5-VL model."
        )


def _check_fixed_values(config: JsonFile) -> None:
    for paths, supported in _FIXED:
        value = config.find(*paths)
        if value is not None and value not in supported:
            raise CheckpointError(
                f"{config.path}: {paths[-1]} is {value!r}, only "
                f"{' or '.join(map(repr, supported))} is supported."
            )
    nested, flat = (config.find(path) for path in _text("tie_word_embeddings"))
    if None not in (nested, flat) and nested != flat:
        raise CheckpointError(
            f"{config.path}: tie_word_embeddings is {flat} at the top but {nested} in "
            "text_config. Keep the one that the model was trained with."
        )


def _check_consistency(path: Path, geometry: Geometry) -> None:
    vision, language = geometry.vision, geometry.language
    last_block = max(vision.fullatt_block_indexes, default=0)
    merged_side = vision.patch_size * vision.spatial_merge_size
    requirements = {
        "vision hidden_size is a multiple of num_heads": vision.hidden_size % vision.num_heads == 0,
        "vision out_hidden_size is the language hidden_size": vision.out_hidden_size
        == language.hidden_size,
        "fullatt_block_indexes are below depth": last_block < vision.depth,
        f"window_size is a multiple of {merged_side}": vision.window_size % merged_side == 0,
        "num_attention_heads is a multiple of num_key_value_heads": language.num_attention_heads
        % language.num_key_value_heads
        == 0,
        f"mrope_section adds up to half of head_dim {language.head_dim}": 2
        * sum(language.mrope_section)
        == language.head_dim,
    }
    if broken := [text for text, holds in requirements.items() if not holds]:
        raise CheckpointError(
            f"{path}: the values contradict each other. Expected: {'; '.join(broken)}. "
            f"Got {geometry.model_dump()}."
        )


def _values(config: JsonFile, keys: Keys) -> dict[str, Any]:
    values = {field: config.find(*paths) for field, paths in keys.items()}
    if missing := [keys[field][-1] for field, value in values.items() if value is None]:
        notes = "".join(f"\n{path}: {_NOTES[path]}" for path in missing if path in _NOTES)
        raise CheckpointError(
            f"{config.path}: missing {', '.join(missing)}. Give the folder that "
            f"save_pretrained wrote, or the hub's.{notes}"
        )
    return values


def _counts(config: JsonFile, keys: Keys) -> dict[str, int]:
    counts = _values(config, keys)
    for field, value in counts.items():
        if type(value) is not int or value < 1:
            raise CheckpointError(
                f"{config.path}: {keys[field][-1]} is {value!r}, expected a positive integer."
            )
    return counts


def _validated(config: JsonFile, schema: type[Schema], values: dict[str, Any]) -> Schema:
    try:
        return schema.model_validate(values)
    except ValidationError as error:
        lines = "\n".join(
            f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}, got {fault['input']!r:.100}"
            for fault in error.errors()
        )
        raise CheckpointError(f"{config.path}: unusable values:\n{lines}") from None
