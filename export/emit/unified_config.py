"""config.json and hf_quant_config.json of a unified checkpoint, as ModelOpt 0.47 writes them."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from autovla_rt import __version__
from autovla_rt.config import is_vision
from autovla_rt.export.quantize import FP4_BLOCK

PRODUCER = {"name": "autovla-rt", "version": __version__}

ALWAYS_FLOAT = ("lm_head", "model.language_model.embed_tokens")
"""Layers of no other format; ModelOpt's names."""

ALL_VISION = "model.visual*"

FP8_NUMBERS: dict[str, Any] = {"dynamic": False, "num_bits": 8, "type": "float"}

LAYER_NUMBERS = {
    "FP8": FP8_NUMBERS,
    "NVFP4": {"dynamic": False, "num_bits": 4, "type": "float", "group_size": FP4_BLOCK},
}
"""Algorithm -> numbers of weights and inputs, where config.json tells them."""


def algorithm(precision: str, int4_block: int) -> dict[str, Any]:
    """Return what the quantization of a layer is called."""
    algorithms: dict[str, dict[str, Any]] = {
        "int8_sq": {"quant_algo": "W8A8_SQ_PER_CHANNEL"},
        "int8_wo": {"quant_algo": "W8A16"},
        "fp8": {"quant_algo": "FP8"},
        "nvfp4": {"quant_algo": "NVFP4", "group_size": FP4_BLOCK},
        "int4_awq": {
            "quant_algo": "W4A16_AWQ",
            "group_size": int4_block,
            "has_zero_point": False,
            "pre_quant_scale": False,
        },
    }
    return algorithms[precision]


def quantization(layers: Mapping[str, str], int4_block: int, kv: str) -> dict[str, Any]:
    """Return the quantization section of hf_quant_config.json.

    Args:
        layers: Precision of every linear layer, by its name in the hub's files.
        int4_block: Inputs that share an int4 scale.
        kv: Number format of the keys and values that are kept.
    """
    quantized = {
        _module(name): algorithm(precision, int4_block)
        for name, precision in layers.items()
        if precision != "fp16"
    }
    chosen = list({of["quant_algo"]: of for of in quantized.values()}.values())
    section: dict[str, Any] = {
        "quant_algo": None,
        "kv_cache_quant_algo": "FP8" if kv == "fp8" else None,
        "exclude_modules": _excluded(layers),
    }
    if len(chosen) == 1:
        section.update(chosen[0])
    elif chosen:
        section.update(quant_algo="MIXED_PRECISION", quantized_layers=quantized)
    return section


def sidecar(section: Mapping[str, Any]) -> dict[str, Any]:
    """Return hf_quant_config.json."""
    return {"producer": PRODUCER, "quantization": dict(section)}


def model_config(
    base: Mapping[str, Any], vocab_size: int, section: Mapping[str, Any]
) -> dict[str, Any]:
    """Return config.json: the base's, with the trained vocabulary, float16 and quantization."""
    config = copy.deepcopy(dict(base))
    config.pop("quantization_config", None)
    parts = [config, *(config[key] for key in ("text_config", "vision_config") if key in config)]
    for part in parts:
        part.update({key: "float16" for key in ("dtype", "torch_dtype") if key in part})
        if "vocab_size" in part:
            part["vocab_size"] = vocab_size
    if "dtype" not in config:
        config["torch_dtype"] = "float16"
    if section["quant_algo"] or section["kv_cache_quant_algo"]:
        config["quantization_config"] = _embedded(section)
    return config


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file as Hugging Face's libraries do."""
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", "utf-8")


def _embedded(section: Mapping[str, Any]) -> dict[str, Any]:
    embedded: dict[str, Any] = {"quant_method": "modelopt", "producer": PRODUCER}
    embedded.update(
        {
            key: value
            for key, value in section.items()
            if key not in ("exclude_modules", "kv_cache_quant_algo")
        }
    )
    embedded["ignore"] = section["exclude_modules"]
    if (numbers_of := LAYER_NUMBERS.get(section["quant_algo"])) is not None:
        numbers = {"input_activations": numbers_of, "weights": numbers_of}
        embedded["config_groups"] = {"group_0": {**numbers, "targets": ["Linear"]}}
    if section["kv_cache_quant_algo"]:
        embedded["kv_cache_scheme"] = FP8_NUMBERS
    return embedded


def _excluded(layers: Mapping[str, str]) -> list[str]:
    """Return what is not quantized; the vision tower as one where none of it is."""
    kept = [name for name, precision in layers.items() if precision == "fp16"]
    whole_tower = all(of == "fp16" for name, of in layers.items() if is_vision(name))
    names = [_module(name) for name in kept if not (whole_tower and is_vision(name))]
    return sorted([*ALWAYS_FLOAT, *([ALL_VISION] if whole_tower else []), *names])


def _module(name: str) -> str:
    """Return a layer's name in transformers since 4.52, which ModelOpt writes into configs."""
    if is_vision(name):
        return f"model.{name}"
    return f"model.language_model.{name.removeprefix('model.')}"
