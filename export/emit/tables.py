"""Files that every CPU backend's runtime reads beside its graphs: embeddings, heads, rotary tables.

Every function streams: one matrix chunk of the checkpoint is in memory at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.lib.format import write_array_header_2_0
from numpy.typing import NDArray
from safetensors.numpy import save

from autovla_rt.config import SPARE_POSITIONS, Camera, CompiledPrompt, Geometry, Precision
from autovla_rt.export.floats import fitting
from autovla_rt.export.passes.static_mrope import VideoSpan, mrope_positions, rotary_tables
from autovla_rt.export.tensors.model_names import EMBEDDING
from autovla_rt.export.weight_source import HEAD, TEXT_HEAD, WeightSource, matrix_chunks


def emit_tables(
    source: WeightSource,
    geometry: Geometry,
    precision: Precision,
    choice_ids: Sequence[int],
    folder: Path,
) -> None:
    """Write the embeddings, and the rows of the two heads that stay in float32.

    Those are the actions', and those of the tokens that decide between fast and slow (`choice_ids`;
    none without chain of thought).
    """
    emit_embeddings(source, precision, folder / "embeddings.npy")
    start = source.shape(f"{TEXT_HEAD}.weight")[0]
    rows = source.rows(f"{HEAD}.weight", start, geometry.language.vocab_size)
    (folder / "action_head.safetensors").write_bytes(save({"weight": rows}))
    choice = np.zeros((len(choice_ids), geometry.language.hidden_size), np.float32)
    for row, token_id in enumerate(choice_ids):
        choice[row] = source.rows(f"{HEAD}.weight", token_id, token_id + 1)
    ids = np.array(choice_ids, np.int64)
    (folder / "choice_head.safetensors").write_bytes(save({"ids": ids, "weight": choice}))


def emit_rotary(
    geometry: Geometry, prompt: CompiledPrompt, cameras: Sequence[Camera], capacity: int, path: Path
) -> None:
    """Write the cos and sin tables of every sequence position and of the spare ones behind."""
    positions = rotary_positions(geometry, prompt, cameras, capacity + SPARE_POSITIONS)
    cos, sin = rotary_tables(geometry, positions)
    path.write_bytes(save({"cos": cos, "sin": sin}))


def rotary_positions(
    geometry: Geometry, prompt: CompiledPrompt, cameras: Sequence[Camera], count: int
) -> NDArray[np.int64]:
    """Return the rotary positions [3, count] of a sequence that begins with the prompt."""
    grids = {camera.name: camera.grid for camera in cameras}
    spans = [VideoSpan(video.start, grids[video.camera]) for video in prompt.videos]
    return mrope_positions(geometry, spans, count)


def emit_embeddings(source: WeightSource, precision: Precision, path: Path) -> None:
    """Write the embedding table as .npy, which the runtime maps: only used rows are read.

    float16 beside quantized weights: its rounding (at most 2^-11 of a value) is far below theirs.
    """
    dtype = np.dtype("float32" if precision.language == "fp32" else "float16")
    header = {"descr": dtype.str, "fortran_order": False, "shape": source.shape(EMBEDDING)}
    with path.open("wb") as file:
        write_array_header_2_0(file, header)
        for chunk in matrix_chunks(source, ("model.embed_tokens",)):
            file.write(np.ascontiguousarray(fitting(EMBEDDING, chunk, dtype.name)).data)
