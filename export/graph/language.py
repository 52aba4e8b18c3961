"""Qwen2.5-VL's language model: k new embeddings over a KV cache -> hidden states of m of them.

Source: Qwen2.5 technical report (arXiv 2412.15115), section 2. Multimodal rotary positions are
folded into the cos/sin tables by passes/static_mrope.py.
"""

from __future__ import annotations

from autovla_rt.config import LanguageGeometry
from autovla_rt.export.graph.ops import Ops, Value


def language_model(ops: Ops, geometry: LanguageGeometry) -> None:
    """Describe embeddings [k, hidden] -> hidden states after the final norm [m, hidden].

    `rows` [m] says of which embeddings. The last layer's attention needs the keys and values of
    all, what comes behind it is computed for these alone: a prefill reads one row of hundreds.
    """
    width, epsilon = geometry.hidden_size, geometry.rms_norm_eps
    x = ops.input("embeddings", "float32", ["k", width])
    rows = ops.input("rows", "int64", ["m"])
    normed = ops.rms_norm(x, "model.layers.0.input_layernorm.weight", epsilon)
    for index in range(geometry.num_hidden_layers):
        last = index + 1 == geometry.num_hidden_layers
        x, normed = language_layer(ops, geometry, index, (x, normed), rows if last else None)
    ops.output(normed, "hidden", "float32", ["m", width])


def language_layer(
    ops: Ops,
    geometry: LanguageGeometry,
    index: int,
    states: tuple[Value, Value],
    rows: Value | None = None,
) -> tuple[Value, Value]:
    """Describe one layer: the residual stream and what the layer's first norm makes of it -> next.

    With `rows`, what comes behind the attention is computed for these alone.
    """
    x, normed = states
    layer, epsilon = f"model.layers.{index}", geometry.rms_norm_eps
    attended = _attention(ops, geometry, index, normed)
    if rows is not None:
        x, attended = (ops.gather(value, rows, axis=0) for value in (x, attended))
    delta = ops.linear(attended, f"{layer}.self_attn.o_proj", bias=False)
    x, normed = ops.add_rms_norm(x, delta, f"{layer}.post_attention_layernorm.weight", epsilon)
    delta = _mlp(ops, layer, normed)
    return ops.add_rms_norm(x, delta, _next_norm(geometry, index), epsilon)


def text_head(ops: Ops, geometry: LanguageGeometry) -> None:
    """Describe hidden states [m, hidden] -> logits of the vocabulary without the action rows.

    The action rows are a head of their own (kernels/action_head.py); together they are the full
    vocabulary. The dialect's checkpoint view ends the head's weight at the first action row.
    """
    hidden = ops.input("hidden", "float32", ["m", geometry.hidden_size])
    logits = ops.linear(hidden, "text_head", bias=False)
    ops.output(logits, "logits", "float32", ["m", "text_vocabulary"])


def _next_norm(geometry: LanguageGeometry, index: int) -> str:
    """Name of the norm that follows layer `index`."""
    if index + 1 == geometry.num_hidden_layers:
        return "model.norm.weight"
    return f"model.layers.{index + 1}.input_layernorm.weight"


def _attention(ops: Ops, geometry: LanguageGeometry, index: int, x: Value) -> Value:
    """[k, hidden] -> [k, heads * head_dim], before the output projection."""
    heads, kv_heads = geometry.num_attention_heads, geometry.num_key_value_heads
    dim = geometry.head_dim
    attention = f"model.layers.{index}.self_attn"
    projections = (f"{attention}.q_proj", f"{attention}.k_proj", f"{attention}.v_proj")
    qkv = ops.reshape(ops.linear(x, *projections, bias=True), [1, -1, (heads + 2 * kv_heads) * dim])
    attended = ops.cached_attention(qkv, index, heads, kv_heads, dim)
    return ops.reshape(attended, [-1, heads * dim])


def _mlp(ops: Ops, layer: str, x: Value) -> Value:
    gate = ops.linear(x, f"{layer}.mlp.gate_proj", bias=False)
    up = ops.linear(x, f"{layer}.mlp.up_proj", bias=False)
    return ops.linear(ops.silu_mul(gate, up), f"{layer}.mlp.down_proj", bias=False)
