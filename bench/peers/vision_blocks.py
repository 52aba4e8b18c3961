"""Qwen2.5-VL's vision tower in torch at AutoVLA's one size, so that it can be traced.

Six temporal patches of 16 x 30 patches; windows of 4 x 4 merged tokens, whose last column is three
wide. Weights are those of the race's checkpoint.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor, nn
from torch.nn import functional

CLIPS, PATCHES, WIDTH, HIDDEN, HEADS, DEPTH = 6, 480, 1176, 1280, 16, 32
ROWS = CLIPS * PATCHES
FULL = (7, 15, 23, 31)
PART = 4
WINDOWS = ((6, 64), (2, 48))
"""(number, patches) of the windows of a clip, in the tower's order."""


class Norm(nn.Module):
    """RMSNorm."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(HIDDEN))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise the last axis."""
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * self.weight


class Block(nn.Module):
    """Attention inside windows, or inside a clip, and the MLP."""

    def __init__(self, full: bool) -> None:
        super().__init__()
        self.groups = ((1, PATCHES),) if full else WINDOWS
        self.norm1, self.norm2 = Norm(), Norm()
        self.qkv, self.proj = nn.Linear(HIDDEN, 3 * HIDDEN), nn.Linear(HIDDEN, HIDDEN)
        self.gate_proj, self.up_proj = nn.Linear(HIDDEN, 3420), nn.Linear(HIDDEN, 3420)
        self.down_proj = nn.Linear(3420, HIDDEN)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """[ROWS, HIDDEN] -> the same."""
        states = self.qkv(self.norm1(x)).view(CLIPS, PATCHES, 3, HEADS, HIDDEN // HEADS)
        query, key, value = states.unbind(2)
        query, key = (_rotate(part, cos, sin) for part in (query, key))
        outputs, start = [], 0
        for count, size in self.groups:
            stop = start + count * size
            parts = (
                part[:, start:stop].reshape(CLIPS * count, size, HEADS, -1).transpose(1, 2)
                for part in (query, key, value)
            )
            attended = functional.scaled_dot_product_attention(*parts).transpose(1, 2)
            outputs.append(attended.reshape(CLIPS, count * size, HIDDEN))
            start = stop
        x = x + self.proj(torch.cat(outputs, 1).reshape(ROWS, HIDDEN))
        normed = self.norm2(x)
        return x + self.down_proj(functional.silu(self.gate_proj(normed)) * self.up_proj(normed))


class VisionBlocks(nn.Module):
    """All of it."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(WIDTH, HIDDEN, bias=False)
        self.blocks = nn.ModuleList(Block(index in FULL) for index in range(DEPTH))
        self.norm = Norm()
        self.mlp = nn.Sequential(
            nn.Linear(4 * HIDDEN, 4 * HIDDEN), nn.GELU(), nn.Linear(4 * HIDDEN, 2048)
        )
        angles = torch.randn(1, PATCHES, 1, HIDDEN // HEADS)
        self.register_buffer("cos", angles.cos())
        self.register_buffer("sin", angles.sin())

    def parts(self) -> list[Part]:
        """Return it in parts, one after the other: quantizing the whole takes 20 GB and more."""
        starts = range(0, DEPTH, PART)
        return [Part(self, start).eval() for start in starts]


class Part(nn.Module):
    """Some blocks of a tower, with what comes before the first and behind the last."""

    def __init__(self, tower: VisionBlocks, start: int) -> None:
        super().__init__()
        self.embed = tower.embed if start == 0 else nn.Identity()
        self.blocks = tower.blocks[start : start + PART]
        self.norm, self.mlp = tower.norm, tower.mlp
        self.last = start + PART == DEPTH
        self.register_buffer("cos", tower.cos)
        self.register_buffer("sin", tower.sin)

    def forward(self, x: Tensor) -> Tensor:
        """[ROWS, WIDTH or HIDDEN] -> [ROWS, HIDDEN], or features [ROWS / 4, 2048] at the end."""
        x = self.embed(x)
        for block in self.blocks:
            x = block(x, self.cos, self.sin)
        return self.mlp(self.norm(x).view(ROWS // 4, 4 * HIDDEN)) if self.last else x


def load(base: Path) -> VisionBlocks:
    """Fill the tower with a checkpoint's weights."""
    model = VisionBlocks().eval()
    files = json.loads((base / "model.safetensors.index.json").read_text())["weight_map"]
    tensors = {}
    for name, parameter in model.named_parameters():
        stored = f"visual.{_stored_name(name)}"
        with safe_open(base / files[stored], "pt") as file:
            tensors[name] = file.get_tensor(stored).float().view(parameter.shape)
    model.load_state_dict(tensors, strict=False)
    return model


def _stored_name(name: str) -> str:
    for ours, theirs in (
        ("embed.", "patch_embed.proj."),
        ("mlp.", "merger.mlp."),
        ("norm.", "merger.ln_q."),
    ):
        if name.startswith(ours):
            return theirs + name.removeprefix(ours)
    block, part = name.rsplit(".", 2)[0], name.split(".", 2)[2]
    kind = part.partition(".")[0]
    inside = {"qkv": "attn.", "proj": "attn."}.get(kind, "" if "norm" in kind else "mlp.")
    return f"{block}.{inside}{part}"


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, -1)
    return x * cos + torch.cat((-second, first), -1) * sin
