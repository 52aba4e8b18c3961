"""llama.cpp's file: the language model as Q4_0, by its own library for GGUF.

.venv-bench/bin/python bench/peers/llama_cpp_files.py WORK
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import gguf
import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter
from safetensors import safe_open

LAYERS = 36
MATRICES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
NORMS = {"input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm"}


def main() -> None:
    """Write llama.gguf."""
    work = Path(sys.argv[1])
    files = json.loads((work / "language/model.safetensors.index.json").read_text())["weight_map"]
    writer = GGUFWriter(str(work / "llama.gguf"), "qwen2", use_temp_file=True)
    writer.add_context_length(4096)
    writer.add_embedding_length(2048)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(11008)
    writer.add_head_count(16)
    writer.add_head_count_kv(2)
    writer.add_rope_freq_base(1e6)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_vocab_size(153713)
    writer.add_tokenizer_model("none")

    def tensor(name: str) -> np.ndarray:
        with safe_open(work / "language" / files[name], "pt") as file:
            return file.get_tensor(name).float().numpy()

    def quantized(stored: str, name: str) -> None:
        kind = GGMLQuantizationType.Q4_0
        writer.add_tensor(name, gguf.quantize(tensor(stored), kind), raw_dtype=kind)

    quantized("model.embed_tokens.weight", "token_embd.weight")
    writer.add_tensor("output_norm.weight", tensor("model.norm.weight"))
    for layer in range(LAYERS):
        ours, theirs = f"model.layers.{layer}.", f"blk.{layer}."
        for part, name in NORMS.items():
            writer.add_tensor(f"{theirs}{name}.weight", tensor(f"{ours}{part}.weight"))
        for part, name in MATRICES.items():
            quantized(f"{ours}{part}.weight", f"{theirs}{name}.weight")
            if name in ("attn_q", "attn_k", "attn_v"):
                writer.add_tensor(f"{theirs}{name}.bias", tensor(f"{ours}{part}.bias"))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    main()
