"""config.json of a TensorRT-LLM checkpoint: what ModelOpt 0.47 writes, and what it leaves out.

The decoder is TensorRT-LLM's `qwen2_vl`. Qwen2.5-VL's is the same but for how fast the temporal
position advances, which is in the rotary table that the engine is given (emit/trtllm_mrope.py). A
plain `qwen2` would count the positions of the answer from the length of the prompt.
"""

from __future__ import annotations

from typing import Any

from autovla_rt.config import LanguageGeometry
from autovla_rt.export.emit.unified_config import PRODUCER, algorithm

COMPUTED = "float16"


def trtllm_config(
    geometry: LanguageGeometry, precision: str, int4_block: int, positions: int
) -> dict[str, Any]:
    """Return config.json.

    `max_position_embeddings` is what the engine is built for, not what the model was made for: the
    rotary table of every request has as many rows.
    """
    return {
        "producer": PRODUCER,
        "architecture": "Qwen2VLForConditionalGeneration",
        "qwen_type": "qwen2_vl",
        "dtype": COMPUTED,
        "logits_dtype": COMPUTED,
        "vocab_size": geometry.vocab_size,
        "hidden_size": geometry.hidden_size,
        "num_hidden_layers": geometry.num_hidden_layers,
        "num_attention_heads": geometry.num_attention_heads,
        "num_key_value_heads": geometry.num_key_value_heads,
        "head_size": geometry.head_dim,
        "intermediate_size": geometry.intermediate_size,
        "hidden_act": "silu",
        "norm_epsilon": geometry.rms_norm_eps,
        "max_position_embeddings": positions,
        "position_embedding_type": "mrope",
        "rotary_base": geometry.rope_theta,
        "rotary_embedding_dim": geometry.head_dim,
        "rotary_pct": 1.0,
        "rotary_scaling": {"type": "mrope", "mrope_section": list(geometry.mrope_section)},
        "attn_bias": True,
        "bias": False,
        "mlp_bias": False,
        "lm_head_bias": False,
        "rmsnorm": True,
        "residual_mlp": False,
        "use_parallel_embedding": True,
        "embedding_sharding_dim": 0,
        "share_embedding_table": False,
        "decoder": "qwen",
        "rank": 0,
        "mapping": {"world_size": 1, "tp_size": 1, "pp_size": 1},
        "quantization": _quantization(precision, int4_block),
    }


def _quantization(precision: str, int4_block: int) -> dict[str, Any]:
    section: dict[str, Any] = {"quant_algo": None, "kv_cache_quant_algo": None}
    if precision == "fp16":
        return section
    section.update(algorithm(precision, int4_block), exclude_modules=["lm_head"])
    if "pre_quant_scale" in section:
        section["pre_quant_scale"] = True  # of ones
    return section
