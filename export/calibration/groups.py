"""Which layers read one value, and who writes it: where channels can be rescaled for free.

Dividing a channel where it is written and multiplying the weights that read it by as much leaves
the model what it was (up to rounding): the identity that SmoothQuant (arXiv 2211.10438, section 4)
and AWQ (arXiv 2306.00978, section 3) rest on. Norms and linear layers write channels; what comes
out of a product of activations (the value of an attention, the up projection of a gated MLP) is
linear in one of its factors, which is where it is divided.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from autovla_rt.config import LanguageGeometry, VisionGeometry
from autovla_rt.export.weight_source import HEAD, TEXT_HEAD


@dataclass(frozen=True)
class Group:
    """Layers that read one value of K channels.

    Attributes:
        step: Whose statistics hold it.
        readers: Their names; the first is the one that the statistics are of.
        writers: Tensors that are divided, a bias with its weight; none where nothing can be.
        channels: int64 [K], the writers' row that each channel comes from; several may share one.
    """

    step: str
    readers: tuple[str, ...]
    writers: tuple[str, ...]
    channels: NDArray[np.int64]


def vision_groups(geometry: VisionGeometry) -> Iterator[Group]:
    """Yield the groups of the vision tower.

    The patches have no writer, and the merger's second layer reads behind a gelu: these stay.
    """
    patches = "visual.patch_embed"
    yield Group(patches, (f"{patches}.proj",), (), np.arange(geometry.patch_width))
    hidden, inner = np.arange(geometry.hidden_size), np.arange(geometry.intermediate_size)
    for index in range(geometry.depth):
        block = f"visual.blocks.{index}"
        attention, mlp = f"{block}.attn", f"{block}.mlp"
        values = 2 * geometry.hidden_size + hidden
        yield Group(block, (f"{attention}.qkv",), (f"{block}.norm1.weight",), hidden)
        yield Group(block, (f"{attention}.proj",), _linear(f"{attention}.qkv"), values)
        gated = (f"{mlp}.gate_proj", f"{mlp}.up_proj")
        yield Group(block, gated, (f"{block}.norm2.weight",), hidden)
        yield Group(block, (f"{mlp}.down_proj",), _linear(f"{mlp}.up_proj"), inner)
    merged = np.tile(hidden, geometry.spatial_merge_size**2)
    merger = "visual.merger"
    yield Group(merger, (f"{merger}.mlp.0",), (f"{merger}.ln_q.weight",), merged)
    yield Group(merger, (f"{merger}.mlp.2",), (), np.arange(len(merged)))


def language_groups(geometry: LanguageGeometry) -> Iterator[Group]:
    """Yield the groups of the language model; query heads share the channels of their values."""
    hidden, inner = np.arange(geometry.hidden_size), np.arange(geometry.intermediate_size)
    shape = geometry.num_key_value_heads, -1, geometry.head_dim
    by_value = np.arange(geometry.num_key_value_heads * geometry.head_dim).reshape(shape)
    shared = by_value.repeat(geometry.num_attention_heads // geometry.num_key_value_heads, axis=1)
    for index in range(geometry.num_hidden_layers):
        layer = f"model.layers.{index}"
        attention, mlp = f"{layer}.self_attn", f"{layer}.mlp"
        projections = tuple(f"{attention}.{name}_proj" for name in "qkv")
        yield Group(layer, projections, (f"{layer}.input_layernorm.weight",), hidden)
        values = _linear(f"{attention}.v_proj")
        yield Group(layer, (f"{attention}.o_proj",), values, shared.reshape(-1))
        gated = (f"{mlp}.gate_proj", f"{mlp}.up_proj")
        yield Group(layer, gated, (f"{layer}.post_attention_layernorm.weight",), hidden)
        yield Group(layer, (f"{mlp}.down_proj",), (f"{mlp}.up_proj.weight",), inner)
    last = f"model.layers.{geometry.num_hidden_layers - 1}"
    yield Group(last, (TEXT_HEAD, HEAD), ("model.norm.weight",), hidden)


def _linear(module: str) -> tuple[str, ...]:
    return f"{module}.weight", f"{module}.bias"
