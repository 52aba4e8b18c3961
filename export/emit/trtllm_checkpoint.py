"""A TensorRT-LLM checkpoint of the language model: rank0.safetensors and config.json, for one GPU.

Tensors are those of ModelOpt's export_tensorrt_llm_checkpoint, streamed: one chunk of one matrix is
in memory at a time. `prequant_scaling_factor`, which its layers multiply their inputs by, is one
everywhere, as channels are rescaled where they are written; TensorRT-LLM refuses a checkpoint
without it. ModelOpt appends rows of zeros to the vocabulary of int4_awq, up to a multiple of 64;
here it ends with the last action, as the logits of such rows could be chosen.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from autovla_rt.export.emit.processor import emit_processor
from autovla_rt.export.emit.shards import Stored, write_file
from autovla_rt.export.emit.stored_layers import (
    FORMATS,
    TENSORRT_LLM,
    Layer,
    float16_ones,
    float16_tensor,
    fp8_weights_and_inputs,
)
from autovla_rt.export.emit.trtllm_config import trtllm_config
from autovla_rt.export.emit.unified_config import write_json
from autovla_rt.export.graph.dialect import Formats
from autovla_rt.export.opened_model import OpenedModel
from autovla_rt.export.tensors.model_names import EMBEDDING, LM_HEAD
from autovla_rt.export.weight_source import WeightSource

LINEAR = {
    "attention.qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "attention.dense": ("self_attn.o_proj",),
    "mlp.fc": ("mlp.gate_proj",),
    "mlp.gate": ("mlp.up_proj",),
    "mlp.proj": ("mlp.down_proj",),
}
"""TensorRT-LLM's layer -> what it is stacked of."""

BIASED = ("attention.qkv",)

FUSED = (("attention.qkv",), ("attention.dense",), ("mlp.fc", "mlp.gate"), ("mlp.proj",))
"""Layers that read one value; TensorRT-LLM may fuse them, so their fp8 weights have one scale."""

NORMS = {
    "input_layernorm": "input_layernorm",
    "post_layernorm": "post_attention_layernorm",
}

PREQUANTIZED = ("int8_sq", "int4_awq")
"""Precisions whose layers multiply their inputs before they are rounded."""


def emit_trtllm(
    model: OpenedModel,
    source: WeightSource,
    formats: Formats,
    precision: str,
    positions: int,
    folder: Path,
) -> None:
    """Write the checkpoint into a folder, and the tokenizer.

    Args:
        model: The checkpoint that it is made of.
        source: Its weights, rescaled where they are calibrated.
        formats: How they are rounded.
        precision: Of every linear layer but the head.
        positions: Most of a sequence.
        folder: Where.

    Raises:
        CheckpointError: a value that stays in float16 does not fit it.
        OSError: the file system refused.
    """
    layers = model.geometry.language.num_hidden_layers
    tensors = [
        float16_tensor(source, "transformer.vocab_embedding.weight", (EMBEDDING,)),
        *(
            stored
            for index in range(layers)
            for stored in _layer(index, source, formats, precision)
        ),
        float16_tensor(source, "transformer.ln_f.weight", ("model.norm.weight",)),
        float16_tensor(source, LM_HEAD),
    ]
    write_file(folder / "rank0.safetensors", tensors)
    config = trtllm_config(model.geometry.language, precision, formats.int4_block, positions)
    write_json(folder / "config.json", config)
    emit_processor(model, folder)


def _layer(index: int, source: WeightSource, formats: Formats, precision: str) -> Iterator[Stored]:
    """Yield the tensors of one layer of the model."""
    ours, theirs = f"model.layers.{index}", f"transformer.layers.{index}"
    for name, norm in NORMS.items():
        yield float16_tensor(source, f"{theirs}.{name}.weight", (f"{ours}.{norm}.weight",))
    for name in BIASED:
        biases = [f"{ours}.{part}.bias" for part in LINEAR[name]]
        yield float16_tensor(source, f"{theirs}.{name}.bias", biases)
    ranges, block = formats.ranges, formats.int4_block
    for names in FUSED:
        layers = []
        for name in names:
            modules = tuple(f"{ours}.{part}" for part in LINEAR[name])
            layers.append(Layer(source, f"{theirs}.{name}", modules, TENSORRT_LLM, ranges, block))
        yield from _linear(layers, precision)


def _linear(layers: Sequence[Layer], precision: str) -> Iterator[Stored]:
    """Yield the weights and scales of layers that read one value."""
    if precision == "fp8":
        yield fp8_weights_and_inputs(*layers)
        return
    for layer in layers:
        if precision in FORMATS:
            yield FORMATS[precision](layer)
        else:
            weights = [f"{module}.weight" for module in layer.modules]
            yield float16_tensor(layer.source, layer.weight, weights)
        if precision in PREQUANTIZED:
            yield float16_ones(f"{layer.name}.prequant_scaling_factor", layer.shape[1])
