"""The miniature AutoVLA in torch: Qwen2.5-VL's mathematics for one fixed camera layout.

Three cameras with a grid of (2, 8, 14) each, so windows, rotary tables and the places of the
videos are constants. It computes what transformers computes (tests/demo/test_model.py), several
times faster on a CPU.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from autovla_rt.config import CAMERAS, Geometry, Preprocessing, VisionGeometry
from autovla_rt.demo.batch import GRID, PROMPT, Batch, Tokens
from autovla_rt.demo.layers import VISION_EPSILON, LanguageLayer, Linear, RmsNorm, VisionBlock
from autovla_rt.export.passes.static_windows import static_windows

CLIPS = len(CAMERAS) * GRID[0]
MASKED = -1e9
MIDDLE_GREY = 128.0


class PatchEmbedding(nn.Module):
    """Raw pixels to patches; the processor's normalisation is folded into the weights."""

    def __init__(self, geometry: VisionGeometry, preprocessing: Preprocessing, dtype: torch.dtype):
        super().__init__()
        self.proj = Linear(geometry.patch_width, geometry.hidden_size, bias=False)
        self.dtype = dtype
        by_value = geometry.patch_width // geometry.in_channels
        mean = torch.tensor(preprocessing.image_mean).repeat_interleave(by_value)
        deviation = torch.tensor(preprocessing.image_std).repeat_interleave(by_value)
        self.register_buffer("scale", 1 / (255 * deviation), persistent=False)
        # Pixels less 128 are exact in bfloat16 and near zero on average, like normalised ones.
        offset = (MIDDLE_GREY / 255 - mean) / deviation
        self.register_buffer("offset", offset, persistent=False)

    scale: Tensor
    offset: Tensor

    def forward(self, patches: Tensor) -> Tensor:
        """Map uint8 [..., patch_width] to [..., hidden], float32."""
        weight = self.proj.weight
        bias = weight @ self.offset
        pixels = patches.to(self.dtype) - MIDDLE_GREY
        projected = nn.functional.linear(pixels, (weight * self.scale).to(self.dtype))
        return projected.float() + bias


class Merger(nn.Module):
    """Joins merge² neighbouring patches into one token of the language model's width."""

    def __init__(self, geometry: VisionGeometry, dtype: torch.dtype) -> None:
        super().__init__()
        self.width = geometry.hidden_size * geometry.spatial_merge_size**2
        self.ln_q = RmsNorm(geometry.hidden_size, VISION_EPSILON, dtype)
        self.mlp = nn.Sequential(
            Linear(self.width, self.width), nn.GELU(), Linear(self.width, geometry.out_hidden_size)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map [clips, N, hidden] to [clips, N/merge², out_hidden]."""
        return self.mlp(self.ln_q(x).reshape(len(x), -1, self.width))  # type: ignore[no-any-return]


class VisionTower(nn.Module):
    """The tower for clips of one grid."""

    def __init__(
        self, geometry: VisionGeometry, preprocessing: Preprocessing, dtype: torch.dtype
    ) -> None:
        super().__init__()
        windows = static_windows(geometry, GRID[1], GRID[2])
        whole = ((1, windows.patch_order.size),)
        full = geometry.fullatt_block_indexes
        self.patch_embed = PatchEmbedding(geometry, preprocessing, dtype)
        self.blocks = nn.ModuleList(
            VisionBlock(geometry, whole if index in full else windows.groups, dtype)
            for index in range(geometry.depth)
        )
        self.merger = Merger(geometry, dtype)
        tables = {
            "patch_order": windows.patch_order,
            "token_restore": windows.token_restore,
            "cos": windows.cos[:, None],
            "sin": windows.sin[:, None],
        }
        for name, table in tables.items():
            self.register_buffer(name, torch.from_numpy(table), persistent=False)
        self.run_block: Callable[..., Tensor] = VisionBlock.forward

    patch_order: Tensor
    token_restore: Tensor
    cos: Tensor
    sin: Tensor

    def forward(self, patches: Tensor) -> Tensor:
        """Map uint8 patches [clips, N, patch_width] to [clips, N/merge², out_hidden]."""
        x = self.patch_embed(patches)[:, self.patch_order]
        for block in self.blocks:
            x = self.run_block(block, x, self.cos, self.sin)
        return self.merger(x)[:, self.token_restore]  # type: ignore[no-any-return]


class LanguageModel(nn.Module):
    """The decoder without its head, which is the embedding table."""

    def __init__(self, geometry: Geometry, dtype: torch.dtype) -> None:
        super().__init__()
        language = geometry.language
        self.embed_tokens = nn.Embedding(language.vocab_size, language.hidden_size)
        self.layers = nn.ModuleList(
            LanguageLayer(language, dtype) for _ in range(language.num_hidden_layers)
        )
        self.norm = RmsNorm(language.hidden_size, language.rms_norm_eps, dtype)
        exponent = torch.arange(0, language.head_dim, 2, dtype=torch.float32) / language.head_dim
        self.register_buffer("frequencies", language.rope_theta**-exponent, persistent=False)
        coordinate = torch.arange(3).repeat_interleave(torch.tensor(language.mrope_section))
        self.register_buffer("coordinate", coordinate, persistent=False)
        self.run_layer: Callable[..., Tensor] = LanguageLayer.forward

    frequencies: Tensor
    coordinate: Tensor

    def forward(self, x: Tensor, positions: Tensor, mask: Tensor, rows: int) -> Tensor:
        """Map embeddings [B, T, hidden] to the last `rows` hidden states after the final norm.

        `positions` are [3, B, T], the mask is [B, 1, 1, T, T].
        """
        angles = positions[self.coordinate].permute(1, 2, 0)[:, :, None] * self.frequencies
        cos, sin = angles.cos(), angles.sin()
        for layer in self.layers[:-1]:
            x = self.run_layer(layer, x, cos, sin, mask)
        # Only the predicting rows need the last layer's queries and its MLP.
        x = self.run_layer(self.layers[-1], x, cos, sin, mask[..., mask.shape[-1] - rows :, :])
        return self.norm(x)  # type: ignore[no-any-return]


class Miniature(nn.Module):
    """The whole model, its parameters in float32.

    Args:
        geometry: shapes; the embeddings must be tied, since the head is the embedding table.
        video_token_id: the placeholder of visual tokens.
        auxiliary_width: outputs by visual token of the auxiliary head, which exists in training
            only: `save_weights` leaves it out.
        preprocessing: mean and standard deviation of the processor.
        dtype: number format of the matrix products: bfloat16 to train, float32 to compare.

    Raises:
        ValueError: the head is not tied.
    """

    def __init__(
        self,
        geometry: Geometry,
        *,
        video_token_id: int,
        auxiliary_width: int,
        preprocessing: Preprocessing | None = None,
        dtype: torch.dtype = torch.bfloat16,
    ) -> None:
        super().__init__()
        if not geometry.language.tie_word_embeddings:
            raise ValueError("the miniature's head is its embedding table: tie_word_embeddings")
        self.geometry, self.video_token_id, self.dtype = geometry, video_token_id, dtype
        self.visual = VisionTower(geometry.vision, preprocessing or Preprocessing(), dtype)
        self.model = LanguageModel(geometry, dtype)
        self.auxiliary = Linear(geometry.language.hidden_size, auxiliary_width)

    def compile_blocks(self) -> None:
        """Fuse the blocks' elementwise work with inductor; the first steps take a minute longer.

        Shapes of the language model are symbols from the start, so a resumed run gets the same
        kernels, and with them the same bits.
        """
        self.visual.run_block = torch.compile(VisionBlock.forward, dynamic=False)
        self.model.run_layer = torch.compile(LanguageLayer.forward, dynamic=True)

    def encode(self, patches: Tensor) -> Tensor:
        """Map uint8 patches [B, 6, N, patch_width] to features [B, 6 * N/merge², hidden].

        Features are in the processor's token order, clip after clip as in the patches; the
        auxiliary head reads them.
        """
        return self.visual(patches.flatten(0, 1)).reshape(  # type: ignore[no-any-return]
            len(patches), -1, self.geometry.language.hidden_size
        )

    def decode(self, features: Tensor, batch: Tokens, first: int = 0) -> Tensor:
        """Return hidden states [B, T - first, hidden] of the tokens from `first` on.

        `features` [B, visual tokens, hidden] take the places of the video placeholders, which are
        read from the first sample.

        Raises:
            ValueError: the placeholders are not as many as the features.
        """
        token_ids = torch.from_numpy(batch.token_ids)
        places = (token_ids[0] == self.video_token_id).nonzero()[:, 0]
        if len(places) != features.shape[1]:
            raise ValueError(
                f"{len(places)} video placeholders in a prompt, {features.shape[1]} features"
            )
        x = self.model.embed_tokens(token_ids).index_copy(1, places, features.float())
        positions, mask = torch.from_numpy(batch.positions), torch.from_numpy(mask_of(batch))
        return self.model(x, positions, mask, token_ids.shape[1] - first)  # type: ignore[no-any-return]

    def forward(self, batch: Batch) -> Tensor:
        """Return hidden states [B, T, hidden] after the final norm."""
        return self.decode(self.encode(torch.from_numpy(batch.patches)), batch)

    def logits(self, hidden: Tensor) -> Tensor:
        """Map hidden states [..., hidden] to [..., vocabulary]."""
        return nn.functional.linear(hidden, self.model.embed_tokens.weight.to(hidden.dtype))


def mask_of(batch: Tokens) -> NDArray[np.float32]:
    """Return what is added to attention scores: [B, 1, 1, T, T], 0 or `MASKED`.

    A token sees what stands before it in the prompt or in its own answer. Padding sees the prompt,
    so that no row is empty.
    """
    segments = batch.segments
    own = segments[:, :, None] == segments[:, None, :]
    visible = np.tri(segments.shape[1], dtype=bool) & (own | (segments[:, None, :] == PROMPT))
    return np.where(visible, np.float32(0), np.float32(MASKED))[:, None, None]
