"""A unified Hugging Face checkpoint, the format that NVIDIA's engines for language models read.

Weights and configs are those of ModelOpt's export_hf_checkpoint. Everything is streamed: one chunk
of one matrix is in memory at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from autovla_rt.export.calibration.groups import language_groups
from autovla_rt.export.emit.processor import emit_processor
from autovla_rt.export.emit.shards import Stored, write_shards
from autovla_rt.export.emit.stored_layers import (
    FORMATS,
    UNIFIED,
    Layer,
    float16_tensor,
    kv_scale,
)
from autovla_rt.export.emit.unified_config import model_config, quantization, sidecar, write_json
from autovla_rt.export.files.json_file import JsonFile
from autovla_rt.export.graph.dialect import Formats
from autovla_rt.export.opened_model import OpenedModel
from autovla_rt.export.tensors.model_names import EMBEDDING, LM_HEAD
from autovla_rt.export.weight_source import WeightSource


def emit_checkpoint(
    model: OpenedModel, source: WeightSource, formats: Formats, folder: Path
) -> None:
    """Write the checkpoint into a folder.

    Args:
        model: The checkpoint that it is made of.
        source: Its weights, rescaled where they are calibrated.
        formats: Precision of every linear layer, and of the keys and values that are kept.
        folder: Where.

    Raises:
        CheckpointError: a value that stays in float16 does not fit it.
        OSError: the file system refused.
    """
    layers = {name: formats.of(name) for name in linear_layers(model)}
    groups = language_groups(model.geometry.language)
    fused = {reader: group.readers for group in groups for reader in group.readers}
    ranges, block = formats.ranges, formats.int4_block

    def layer_of(module: str) -> Layer:
        together = fused.get(module, (module,))
        return Layer(source, module, (module,), UNIFIED, ranges, block, together)

    names = model.checkpoint.names
    write_shards(folder, [stored for name in names for stored in _stored(name, layer_of, formats)])
    section = quantization(layers, formats.int4_block, formats.kv)
    base = JsonFile(model.base / "config.json").content
    config = model_config(base, model.geometry.language.vocab_size, section)
    write_json(folder / "config.json", config)
    if "quantization_config" in config:
        write_json(folder / "hf_quant_config.json", sidecar(section))
    emit_processor(model, folder)


def linear_layers(model: OpenedModel) -> list[str]:
    """Return the names of the layers that may have another format than float16."""
    return [
        name.removesuffix(".weight")
        for name in model.checkpoint.names
        if len(model.checkpoint.shape(name)) == 2 and name not in (EMBEDDING, LM_HEAD)
    ]


def _stored(name: str, layer_of: Callable[[str], Layer], formats: Formats) -> Iterator[Stored]:
    """Yield a tensor of the checkpoint as it is stored, and its scales."""
    module, _, kind = name.rpartition(".")
    layer = layer_of(module)
    store = FORMATS.get(formats.of(module)) if len(layer.source.shape(name)) == 2 else None
    yield float16_tensor(layer.source, name) if store is None else store(layer)
    for index, letter in enumerate("kv"):
        if kind == "weight" and module.endswith(f"self_attn.{letter}_proj"):
            yield from _kv_scale(module, index, formats)


def _kv_scale(module: str, index: int, formats: Formats) -> Iterator[Stored]:
    """Yield the scale of the keys (index 0) or values that are kept, where they are fp8."""
    ranges = formats.ranges
    if formats.kv == "fp8" and ranges is not None:
        layer = int(module.split(".")[2])
        yield kv_scale(f"{module}.{'kv'[index]}_scale", lambda: ranges.largest_kv(layer)[index])
