"""Seeded random Qwen2.5-VL miniatures in transformers, and the engines compiled from them."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from autovla_rt.config import Geometry, LanguageGeometry, VisionGeometry
from autovla_rt.export.codebook import write_codebook
from autovla_rt.kernels.contour import pose_to_corners

VOCABULARY = 153_713
ACTION_START = 151_665
SPECIAL = {
    "vision_start_token_id": 151652,
    "vision_end_token_id": 151653,
    "image_token_id": 151655,
    "video_token_id": 151656,
}


@dataclass(frozen=True)
class Shape:
    """What distinguishes one miniature."""

    seed: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    mrope: tuple[int, int, int]
    vision_heads: int
    vision_head_dim: int
    depth: int
    full: tuple[int, ...]
    intermediate: int = 256
    layers: int = 3

    def geometry(self) -> Geometry:
        return Geometry(
            vision=VisionGeometry(
                depth=self.depth,
                hidden_size=self.vision_heads * self.vision_head_dim,
                num_heads=self.vision_heads,
                intermediate_size=self.intermediate,
                out_hidden_size=self.hidden,
                fullatt_block_indexes=self.full,
            ),
            language=LanguageGeometry(
                hidden_size=self.hidden,
                num_hidden_layers=self.layers,
                num_attention_heads=self.heads,
                num_key_value_heads=self.kv_heads,
                head_dim=self.head_dim,
                intermediate_size=self.intermediate,
                vocab_size=VOCABULARY,
                rms_norm_eps=1e-6,
                rope_theta=1e6,
                mrope_section=self.mrope,
                tie_word_embeddings=True,
            ),
        )


SHAPES = {
    "head16": Shape(1, 128, 8, 1, 16, (2, 3, 3), 4, 16, 4, (1, 3)),
    "head128": Shape(2, 256, 2, 1, 128, (16, 24, 24), 2, 80, 3, (2,)),
    "gqa8": Shape(3, 256, 8, 1, 32, (4, 6, 6), 2, 32, 5, (0, 2, 4)),
}


def build_model(shape: Shape) -> Qwen2_5_VLForConditionalGeneration:
    """A random model whose logits are not flat: their std over the vocabulary is above 1.5."""
    geometry = shape.geometry()
    vision, language = geometry.vision, geometry.language
    config = Qwen2_5_VLConfig(
        text_config={
            **language.model_dump(exclude={"mrope_section"}),
            "rope_scaling": {"type": "mrope", "mrope_section": list(language.mrope_section)},
            "max_position_embeddings": 4096,
            "eos_token_id": 151645,
        },
        vision_config={
            **vision.model_dump(exclude={"in_channels"}),
            "in_channels": 3,
            "fullatt_block_indexes": list(vision.fullatt_block_indexes),
            "tokens_per_second": 2,
        },
        tie_word_embeddings=True,
        **SPECIAL,
    )
    config._attn_implementation = "eager"
    torch.manual_seed(shape.seed)
    model = Qwen2_5_VLForConditionalGeneration(config).eval().float()
    generator = torch.Generator().manual_seed(shape.seed)
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            noise = torch.randn(tensor.shape, generator=generator)
            if "norm" in name or "ln_q" in name:
                tensor.copy_(1 + 0.1 * noise)
            elif name.endswith("bias"):
                tensor.copy_(0.1 * noise)
            elif "embed_tokens" in name:
                tensor.copy_(noise * 2.0 / shape.hidden**0.5)
            else:
                # The last layer of the merger is larger, so that a wrong GELU before it shows.
                gain = 3.5 if name.endswith("merger.mlp.2.weight") else 1.5
                tensor.copy_(noise * gain / tensor[0].numel() ** 0.5)
    return model


def write_checkpoint(
    model: Qwen2_5_VLForConditionalGeneration, processor: Path, folder: Path, *, use_cot: bool
) -> Path:
    """Write the model as users hold it: Hugging Face folder, codebook and training YAML.

    `processor` is the folder with the real tokenizer, action tokens added. Returns the YAML.
    """
    base = folder / "base"
    model.save_pretrained(base)
    for name in ("tokenizer.json", "tokenizer_config.json", "preprocessor_config.json"):
        shutil.copy(processor / name, base / name)
    write_codebook(random_codebook(np.random.default_rng(0)), folder / "codebook.safetensors")
    config = folder / "config.yaml"
    config.write_text(training_yaml(use_cot=use_cot))
    return config


def training_yaml(*, use_cot: bool) -> str:
    return f"""
model:
  use_cot: {str(use_cot).lower()}
  pretrained_model_path: base
  codebook_cache_path: codebook.safetensors
  trajectory: {{num_poses: 10, interval_length: 0.5, time_horizon: 5.0}}
  tokens: {{action_start_id: {ACTION_START}, assistant_id: [151644, 77091]}}
  video: {{min_pixels: 109760, max_pixels: 109760}}
"""


def random_codebook(rng: np.random.Generator) -> np.ndarray:
    """2,048 plausible steps as corners [2048, 4, 2]."""
    steps = np.stack(
        [
            rng.uniform(0, 8, VOCABULARY - ACTION_START),
            rng.normal(0, 0.3, VOCABULARY - ACTION_START),
            rng.normal(0, 0.1, VOCABULARY - ACTION_START),
        ],
        axis=1,
    )
    steps[0] = 0
    return pose_to_corners(steps).astype(np.float32)
