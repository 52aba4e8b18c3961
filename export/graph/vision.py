"""Qwen2.5-VL's vision tower for one temporal patch of one camera, batched over such patches.

Source: Qwen2.5-VL technical report (arXiv 2502.13923), section 2.1.1.
"""

from __future__ import annotations

from autovla_rt.config import VisionGeometry
from autovla_rt.export.graph.ops import FLOATS, Ops, Value
from autovla_rt.export.passes.static_windows import WindowLayout

EPSILON = 1e-6


def vision_tower(ops: Ops, geometry: VisionGeometry, windows: WindowLayout) -> None:
    """Describe patches [B, N, patch_width] -> features [B, N/merge², out_hidden_size].

    Patches and features are in the processor's order; inside, windows of a size are neighbours.
    """
    num_patches = windows.patch_order.size
    patches = ops.input("patches", FLOATS, ["batch", num_patches, geometry.patch_width])
    states = vision_embedding(ops, geometry, windows, patches)
    for index in range(geometry.depth):
        states = vision_block(ops, geometry, windows, index, states)
    restored = vision_merger(ops, geometry, windows, states[1])
    tokens = num_patches // geometry.spatial_merge_size**2
    ops.output(restored, "features", "float32", ["batch", tokens, geometry.out_hidden_size])


def vision_embedding(
    ops: Ops, geometry: VisionGeometry, windows: WindowLayout, patches: Value
) -> tuple[Value, Value]:
    """Describe patches [B, N, patch_width] -> the residual stream [B*N, hidden], and it normed."""
    order = ops.constant("patch_order", windows.patch_order)
    ordered = ops.reshape(ops.gather(patches, order, axis=1), [-1, geometry.patch_width])
    x = ops.linear(ordered, "visual.patch_embed.proj", bias=False)
    return x, ops.rms_norm(x, "visual.blocks.0.norm1.weight", EPSILON)


def vision_block(
    ops: Ops,
    geometry: VisionGeometry,
    windows: WindowLayout,
    index: int,
    states: tuple[Value, Value],
) -> tuple[Value, Value]:
    """Describe one block: the residual stream and what the block's first norm makes of it -> next.

    The last block's second state is normed for the merger.
    """
    x, normed = states
    block = f"visual.blocks.{index}"
    full = index in geometry.fullatt_block_indexes
    groups = ((1, windows.patch_order.size),) if full else windows.groups
    cos, sin = ops.constant("cos", windows.cos), ops.constant("sin", windows.sin)
    delta = _attention(ops, geometry, block, normed, cos, sin, groups)
    x, normed = ops.add_rms_norm(x, delta, f"{block}.norm2.weight", EPSILON)
    delta = _mlp(ops, block, normed)
    return ops.add_rms_norm(x, delta, _next_norm(geometry, index), EPSILON)


def vision_merger(
    ops: Ops, geometry: VisionGeometry, windows: WindowLayout, normed: Value
) -> Value:
    """Describe normed states [B*N, hidden] -> features [B, N/merge², out_hidden_size]."""
    features = _merger(ops, geometry, normed)
    tokens = windows.patch_order.size // geometry.spatial_merge_size**2
    batched = ops.reshape(features, [-1, tokens, geometry.out_hidden_size])
    return ops.gather(batched, ops.constant("token_restore", windows.token_restore), axis=1)


def _next_norm(geometry: VisionGeometry, index: int) -> str:
    """Name of the norm that follows block `index`."""
    if index + 1 == geometry.depth:
        return "visual.merger.ln_q.weight"
    return f"visual.blocks.{index + 1}.norm1.weight"


def _attention(
    ops: Ops,
    geometry: VisionGeometry,
    block: str,
    x: Value,
    cos: Value,
    sin: Value,
    groups: tuple[tuple[int, int], ...],
) -> Value:
    """Dense attention inside each window; `groups` as in WindowLayout."""
    width, heads = geometry.hidden_size, geometry.num_heads
    num_patches = sum(count * size for count, size in groups)
    qkv = ops.linear(x, f"{block}.attn.qkv", bias=True)
    parts = ops.split(ops.reshape(qkv, [-1, num_patches, 3 * width]), 3, axis=2)
    rotated = [ops.rotary(part, cos, sin, heads) for part in parts[:2]]
    outputs, start = [], 0
    for count, size in groups:
        stop = start + count * size
        query, key, value = (
            ops.reshape(ops.slice(part, start, stop, axis=1), [-1, size, width])
            for part in (*rotated, parts[2])
        )
        attended = ops.attention(query, key, value, heads)
        outputs.append(ops.reshape(attended, [-1, count * size, width]))
        start = stop
    joined = ops.reshape(ops.concat(outputs, axis=1), [-1, width])
    return ops.linear(joined, f"{block}.attn.proj", bias=True)


def _mlp(ops: Ops, block: str, x: Value) -> Value:
    gate = ops.linear(x, f"{block}.mlp.gate_proj", bias=True)
    up = ops.linear(x, f"{block}.mlp.up_proj", bias=True)
    return ops.linear(ops.silu_mul(gate, up), f"{block}.mlp.down_proj", bias=True)


def _merger(ops: Ops, geometry: VisionGeometry, normed: Value) -> Value:
    """Join merge² neighbouring patches into one token of the language model's width."""
    joined = ops.reshape(normed, [-1, geometry.hidden_size * geometry.spatial_merge_size**2])
    hidden = ops.gelu(ops.linear(joined, "visual.merger.mlp.0", bias=True))
    return ops.linear(hidden, "visual.merger.mlp.2", bias=True)
