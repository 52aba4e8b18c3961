"""Seeded random Qwen2.5-VL miniatures in transformers, and the engines compiled from them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from autovla_rt.config import Geometry, LanguageGeometry, VisionGeometry

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
                tensor.copy_(noise * 1.5 / tensor[0].numel() ** 0.5)
    return model


def save_folder(model: Qwen2_5_VLForConditionalGeneration, folder: Path) -> None:
    """Save in the Hugging Face layout."""
    model.save_pretrained(folder)


def synthetic_patches(rng: np.random.Generator, grid: tuple[int, int, int]) -> np.ndarray:
    """Normalised random patches [temporal, rows*columns, 1176]."""
    frames, rows, columns = grid
    return rng.standard_normal((frames, rows * columns, 1176)).astype(np.float32)
