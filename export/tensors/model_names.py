"""Names and shapes of Qwen2.5-VL's tensors: those of the 3B files on the Hugging Face hub."""

from __future__ import annotations

from autovla_rt.config import Geometry, LanguageGeometry, VisionGeometry

EMBEDDING = "model.embed_tokens.weight"
LM_HEAD = "lm_head.weight"

IGNORED = frozenset({"training_reward_buffer", "sliding_idx", "window_count"})
"""Buffers of the GRPO training module, which are no part of the model."""

_WRAPPERS = ("autovla.vlm.", "drivevla.vlm.", "base_model.model.")
"""Prefixes of the training modules, then of PEFT, in the order in which they nest."""

_RENAMED = (("model.visual.", "visual."), ("model.language_model.", "model."))
"""Prefixes that transformers renamed in 4.52, and what they were before."""

Shapes = dict[str, tuple[int, ...]]


def canonical_name(stored: str) -> str:
    """Return the hub's name of a tensor stored under any known layout; others stay as they are."""
    for prefix in _WRAPPERS:
        stored = stored.removeprefix(prefix)
    for new, old in _RENAMED:
        if stored.startswith(new):
            return old + stored.removeprefix(new)
    return stored


def expected_shapes(geometry: Geometry) -> Shapes:
    """Return name -> shape of every tensor of a model, in the order of computation.

    Linear weights are [out, in]; `lm_head.weight` is there only where it is untied.
    """
    return {**_vision_shapes(geometry.vision), **_language_shapes(geometry.language)}


def _vision_shapes(vision: VisionGeometry) -> Shapes:
    hidden, inner = vision.hidden_size, vision.intermediate_size
    merged = hidden * vision.spatial_merge_size**2
    patch = (vision.in_channels, vision.temporal_patch_size, vision.patch_size, vision.patch_size)
    block: Shapes = {
        "norm1.weight": (hidden,),
        "norm2.weight": (hidden,),
        **_linear("attn.qkv", 3 * hidden, hidden),
        **_linear("attn.proj", hidden, hidden),
        **_linear("mlp.gate_proj", inner, hidden),
        **_linear("mlp.up_proj", inner, hidden),
        **_linear("mlp.down_proj", hidden, inner),
    }
    return {
        "visual.patch_embed.proj.weight": (hidden, *patch),
        **_repeat("visual.blocks", vision.depth, block),
        "visual.merger.ln_q.weight": (hidden,),
        **_linear("visual.merger.mlp.0", merged, merged),
        **_linear("visual.merger.mlp.2", vision.out_hidden_size, merged),
    }


def _language_shapes(language: LanguageGeometry) -> Shapes:
    hidden, inner = language.hidden_size, language.intermediate_size
    queries = language.num_attention_heads * language.head_dim
    keys = language.num_key_value_heads * language.head_dim
    layer: Shapes = {
        "input_layernorm.weight": (hidden,),
        **_linear("self_attn.q_proj", queries, hidden),
        **_linear("self_attn.k_proj", keys, hidden),
        **_linear("self_attn.v_proj", keys, hidden),
        "self_attn.o_proj.weight": (hidden, queries),
        "post_attention_layernorm.weight": (hidden,),
        "mlp.gate_proj.weight": (inner, hidden),
        "mlp.up_proj.weight": (inner, hidden),
        "mlp.down_proj.weight": (hidden, inner),
    }
    table = (language.vocab_size, hidden)
    return {
        EMBEDDING: table,
        **_repeat("model.layers", language.num_hidden_layers, layer),
        "model.norm.weight": (hidden,),
        **({} if language.tie_word_embeddings else {LM_HEAD: table}),
    }


def _linear(name: str, outputs: int, inputs: int) -> Shapes:
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


def _repeat(prefix: str, count: int, shapes: Shapes) -> Shapes:
    return {
        f"{prefix}.{index}.{name}": shape
        for index in range(count)
        for name, shape in shapes.items()
    }
