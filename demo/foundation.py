"""What a miniature has before it is trained: tokenizer, action codebook and configuration.

The tokenizer is trained on the recipe and on narrations, the codebook on the expert's plans, both
of scenes that no other part uses.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file
from tokenizers import Tokenizer

from autovla_rt.config import Geometry, LanguageGeometry, Preprocessing, VisionGeometry
from autovla_rt.demo.narrator import narrate
from autovla_rt.demo.road import Array
from autovla_rt.demo.scenes import record_scene
from autovla_rt.demo.tokenizer import NUM_ACTIONS, corpus, tokenizer_config, train_tokenizer
from autovla_rt.export.k_disk import k_disk
from autovla_rt.kernels.contour import compose, inverse, pose_to_corners

FIRST_SEED = 3_000_000_000
"""Seeds from here on belong to the foundation; training and evaluation stay below."""

NARRATIONS = 800
CODEBOOK_SCENES = 24_000
TOLERANCE = 0.04
CHUNK = 500


MAX_PIXELS = 32 * 28 * 28
"""Frames of 16:9 become 196x112: a grid of (2, 8, 14)."""

VISION = VisionGeometry(
    depth=4,
    hidden_size=128,
    num_heads=2,
    intermediate_size=384,
    out_hidden_size=256,
    fullatt_block_indexes=(1, 3),
)


def write_foundation(out: Path, seed: int, scenes: int = CODEBOOK_SCENES) -> Geometry:
    """Write base folder (without weights), codebook and configuration under `out`.

    Equal seeds and numbers of scenes give equal files.
    """
    tokenizer = train_tokenizer(corpus(narrations()))
    segments = plan_segments(scenes)
    corners = k_disk(pose_to_corners(segments), NUM_ACTIONS, tolerance=TOLERANCE, seed=seed)
    geometry = Geometry(vision=VISION, language=language_geometry(tokenizer.get_vocab_size()))
    base = out / "base"
    base.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(base / "tokenizer.json"))
    write_json(base / "tokenizer_config.json", tokenizer_config(tokenizer))
    write_json(base / "config.json", model_config(geometry, tokenizer))
    write_json(base / "generation_config.json", generation_config(tokenizer))
    write_json(base / "preprocessor_config.json", preprocessor_config())
    save_file({"corners": corners}, out / "codebook.safetensors")
    (out / "config.yaml").write_text(training_config(tokenizer), encoding="utf-8")
    return geometry


def narrations() -> Iterator[str]:
    """Yield the lines of reasoning about some hundred scenes."""
    for index in range(NARRATIONS):
        yield from narrate(record_scene(FIRST_SEED + index)).splitlines()


def plan_segments(scenes: int) -> Array:
    """Return the motions of 0.5 s in the expert's plans, poses [n, 3], a standstill first."""
    starts = range(0, scenes, CHUNK)
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        return np.concatenate([np.zeros((1, 3)), *pool.map(_segments_from, starts)])


def _segments_from(start: int) -> Array:
    pieces = []
    for index in range(CHUNK):
        poses = record_scene(FIRST_SEED + 1_000_000 + start + index).trajectory
        before = np.concatenate([np.zeros((1, 3)), poses[:-1]])
        pieces.append(compose(inverse(before), poses))
    return np.concatenate(pieces)


def language_geometry(vocab_size: int) -> LanguageGeometry:
    """Return the language model's geometry around a vocabulary."""
    return LanguageGeometry(
        hidden_size=256,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        intermediate_size=768,
        vocab_size=vocab_size,
        rms_norm_eps=1e-6,
        rope_theta=1e6,
        mrope_section=(8, 12, 12),
        tie_word_embeddings=True,
    )


def model_config(geometry: Geometry, tokenizer: Tokenizer) -> dict[str, Any]:
    """Return config.json in the flat layout of the hub, which transformers 4.49 and 4.57 read."""
    language = geometry.language.model_dump(exclude={"head_dim", "mrope_section"})
    return {
        "architectures": ["Qwen2_5_VLForConditionalGeneration"],
        "model_type": "qwen2_5_vl",
        **language,
        "rope_scaling": {"type": "mrope", "mrope_section": geometry.language.mrope_section},
        "hidden_act": "silu",
        "attention_dropout": 0.0,
        "max_position_embeddings": 4096,
        "max_window_layers": language["num_hidden_layers"],
        "sliding_window": 4096,
        "use_sliding_window": False,
        "use_cache": True,
        "torch_dtype": "float16",
        "bos_token_id": tokenizer.token_to_id("<|endoftext|>"),
        "eos_token_id": tokenizer.token_to_id("<|im_end|>"),
        "vision_start_token_id": tokenizer.token_to_id("<|vision_start|>"),
        "vision_end_token_id": tokenizer.token_to_id("<|vision_end|>"),
        "vision_token_id": tokenizer.token_to_id("<|vision_pad|>"),
        "image_token_id": tokenizer.token_to_id("<|image_pad|>"),
        "video_token_id": tokenizer.token_to_id("<|video_pad|>"),
        "vision_config": {
            "model_type": "qwen2_5_vl",
            "hidden_act": "silu",
            **geometry.vision.model_dump(),
            "tokens_per_second": 2,
        },
    }


def generation_config(tokenizer: Tokenizer) -> dict[str, Any]:
    """Return generation_config.json with the values of Qwen2.5-VL-3B-Instruct."""
    end_of_text = tokenizer.token_to_id("<|endoftext|>")
    return {
        "bos_token_id": end_of_text,
        "pad_token_id": end_of_text,
        "eos_token_id": [tokenizer.token_to_id("<|im_end|>"), end_of_text],
        "do_sample": True,
        "repetition_penalty": 1.05,
        "temperature": 1e-6,
    }


def preprocessor_config() -> dict[str, Any]:
    """Return preprocessor_config.json; its pixel bounds are Qwen's, training narrows them."""
    defaults = Preprocessing()
    return {
        "image_processor_type": "Qwen2VLImageProcessor",
        "processor_class": "Qwen2_5_VLProcessor",
        "min_pixels": 3136,
        "max_pixels": 12845056,
        "patch_size": VISION.patch_size,
        "temporal_patch_size": VISION.temporal_patch_size,
        "merge_size": VISION.spatial_merge_size,
        "image_mean": defaults.image_mean,
        "image_std": defaults.image_std,
    }


def training_config(tokenizer: Tokenizer) -> str:
    """Return the YAML that the training repository keeps beside a run."""
    assistant = tokenizer.encode("<|im_start|>assistant").ids
    return f"""\
# Miniature AutoVLA, trained in its own world (demo/); paths are relative to this file.
model:
  use_cot: true
  pretrained_model_path: base
  codebook_cache_path: codebook.safetensors
  trajectory:
    num_poses: 10
    interval_length: 0.5
    time_horizon: 5.0
  tokens:
    action_start_id: {tokenizer.token_to_id("<action_0>")}
    assistant_id: {assistant}
  video:
    min_pixels: {MAX_PIXELS}
    max_pixels: {MAX_PIXELS}
inference:
  sample:
    max_length: 2048
    temperature: 0.8
    top_k: 20
    top_p: 0.2
"""


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file with its keys in the given order."""
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
