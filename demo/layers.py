"""Qwen2.5-VL's blocks in torch, written for training at small sizes on a CPU.

Weights are float32 and are cast to the number format of the activations where they are used. The
residual stream stays float32; norms and softmax are computed in float32. Attention is two plain
matrix products: at a few hundred tokens its backward pass is faster than flash attention's.

Source: Qwen2.5-VL technical report (arXiv 2502.13923); parameter names are the hub's, except for
products that share an input, which are one (`qkv_proj`, `gate_up_proj`).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from autovla_rt.config import LanguageGeometry, VisionGeometry

VISION_EPSILON = 1e-6


class Linear(nn.Linear):
    """A linear layer that computes in its input's number format."""

    def forward(self, x: Tensor) -> Tensor:
        """Map [..., in] to [..., out]."""
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return functional.linear(x, self.weight.to(x.dtype), bias)


class RmsNorm(nn.Module):
    """Root mean square norm, computed in float32 and returned in `dtype`."""

    def __init__(self, width: int, epsilon: float, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.epsilon, self.dtype = epsilon, dtype

    def forward(self, x: Tensor) -> Tensor:
        """Normalise the last axis of [..., width]."""
        wide = x.float()
        scale = torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.epsilon)
        return (wide * scale * self.weight).to(self.dtype)


class SwiGlu(nn.Module):
    """down(silu(gate(x)) * up(x)), gate and up in one product."""

    def __init__(self, width: int, inner: int, bias: bool) -> None:
        super().__init__()
        self.gate_up_proj = Linear(width, 2 * inner, bias=bias)
        self.down_proj = Linear(inner, width, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """Map [..., width] to [..., width]."""
        gate, up = self.gate_up_proj(x).chunk(2, dim=-1)
        return self.down_proj(functional.silu(gate.float()).mul(up).to(x.dtype))  # type: ignore[no-any-return]


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the halves of x [..., d] by tables [..., d/2]; computed in the tables' format."""
    low, high = x.chunk(2, dim=-1)
    return torch.cat([low * cos - high * sin, high * cos + low * sin], dim=-1).to(x.dtype)


def last(x: Tensor, rows: int) -> Tensor:
    """Return the last rows of [B, T, ...]."""
    return x[:, x.shape[1] - rows :]


class VisionAttention(nn.Module):
    """Attention inside groups of patches; `groups` as in `WindowLayout`."""

    def __init__(self, geometry: VisionGeometry, groups: tuple[tuple[int, int], ...]) -> None:
        super().__init__()
        self.heads, self.groups = geometry.num_heads, groups
        self.qkv = Linear(geometry.hidden_size, 3 * geometry.hidden_size)
        self.proj = Linear(geometry.hidden_size, geometry.hidden_size)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Map patches in tower order [clips, N, width] with tables [N, 1, head_dim/2]."""
        query, key, value = self.qkv(x).unflatten(-1, (3, self.heads, -1)).unbind(2)
        query, key = rotate(query, cos, sin), rotate(key, cos, sin)
        sizes = [count * size for count, size in self.groups]
        parts = zip(*(torch.split(part, sizes, 1) for part in (query, key, value)), strict=True)
        attended = [
            self._windows(count, *part) for (count, _), part in zip(self.groups, parts, strict=True)
        ]
        return self.proj(torch.cat(attended, 1))  # type: ignore[no-any-return]

    def _windows(self, count: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Attend inside `count` equal windows of [clips, count * size, heads, head_dim]."""
        query, key, value = (
            torch.unflatten(part, 1, (count, -1)).transpose(2, 3) for part in (query, key, value)
        )
        scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-1, -2)
        attended: Tensor = scores.float().softmax(-1).to(value.dtype) @ value
        return attended.transpose(2, 3).flatten(1, 2).flatten(2)


class VisionBlock(nn.Module):
    """One block of the tower, windowed or over the whole temporal patch."""

    def __init__(
        self, geometry: VisionGeometry, groups: tuple[tuple[int, int], ...], dtype: torch.dtype
    ) -> None:
        super().__init__()
        self.norm1 = RmsNorm(geometry.hidden_size, VISION_EPSILON, dtype)
        self.attn = VisionAttention(geometry, groups)
        self.norm2 = RmsNorm(geometry.hidden_size, VISION_EPSILON, dtype)
        self.mlp = SwiGlu(geometry.hidden_size, geometry.intermediate_size, bias=True)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Map the residual stream [clips, N, width] in tower order."""
        x = x + self.attn(self.norm1(x), cos, sin)
        return x + self.mlp(self.norm2(x))  # type: ignore[no-any-return]


class LanguageAttention(nn.Module):
    """Grouped-query attention."""

    def __init__(self, geometry: LanguageGeometry) -> None:
        super().__init__()
        self.heads, self.groups = geometry.num_attention_heads, geometry.num_key_value_heads
        width = self.heads * geometry.head_dim
        joint = width + 2 * self.groups * geometry.head_dim
        self.qkv_proj = Linear(geometry.hidden_size, joint)
        self.o_proj = Linear(width, geometry.hidden_size, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor) -> Tensor:
        """Map [B, T, hidden] to the last S rows, [B, S, hidden], S being the mask's rows.

        The tables are [B, T, 1, head_dim/2], the mask is [B, 1, 1, S, T].
        """
        rows = mask.shape[-2]
        joint = self.qkv_proj(x).unflatten(-1, (self.heads + 2 * self.groups, -1))
        query, key, value = joint.split([self.heads, self.groups, self.groups], 2)
        query, key = (
            rotate(last(query, rows), last(cos, rows), last(sin, rows)),
            rotate(key, cos, sin),
        )
        # The query heads of one key head become rows of one product.
        query = (query * query.shape[-1] ** -0.5).transpose(1, 2).unflatten(1, (self.groups, -1))
        key, value, half = key.transpose(1, 2), value.transpose(1, 2), rows // 2
        # The first half of the rows sees nothing of what stands behind it.
        seen = x.shape[1] - rows + half
        attended = torch.cat(
            [
                attend(
                    query[:, :, :, :half],
                    key[:, :, :seen],
                    value[:, :, :seen],
                    mask[..., :half, :seen],
                ),
                attend(query[:, :, :, half:], key, value, mask[..., half:, :]),
            ],
            3,
        )
        return self.o_proj(attended.flatten(1, 2).transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
    """Attend from [B, groups, heads, S, d] to [B, groups, T, d] with a mask [B, 1, 1, S, T]."""
    rows = query.shape[3]
    scores = torch.unflatten(query.flatten(2, 3) @ key.transpose(-1, -2), 2, (-1, rows))
    weights = (scores.float() + mask).softmax(-1).to(value.dtype)
    return torch.unflatten(weights.flatten(2, 3) @ value, 2, (-1, rows))


class LanguageLayer(nn.Module):
    """One decoder layer."""

    def __init__(self, geometry: LanguageGeometry, dtype: torch.dtype) -> None:
        super().__init__()
        width, epsilon = geometry.hidden_size, geometry.rms_norm_eps
        self.input_layernorm = RmsNorm(width, epsilon, dtype)
        self.self_attn = LanguageAttention(geometry)
        self.post_attention_layernorm = RmsNorm(width, epsilon, dtype)
        self.mlp = SwiGlu(width, geometry.intermediate_size, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor) -> Tensor:
        """Map the residual stream [B, T, hidden] to its last rows, as many as the mask has."""
        attended = self.self_attn(self.input_layernorm(x), cos, sin, mask)
        x = last(x, mask.shape[-2]) + attended
        return x + self.mlp(self.post_attention_layernorm(x))  # type: ignore[no-any-return]
