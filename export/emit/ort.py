"""Graphs of the ONNX Runtime backend, in the `ort` dialect.

Every function streams: one matrix chunk of the checkpoint is in memory at a time (an int8 matrix
is held whole while it is transposed).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from autovla_rt.config import Camera, Geometry, Precision
from autovla_rt.export.graph.language import language_model, text_head
from autovla_rt.export.graph.ort import OrtOps
from autovla_rt.export.graph.ort_linear import LINEARS
from autovla_rt.export.graph.vision import vision_tower
from autovla_rt.export.passes.static_windows import static_windows
from autovla_rt.export.weight_file import WeightFile
from autovla_rt.export.weight_source import WeightSource


def emit_vision(
    source: WeightSource,
    geometry: Geometry,
    cameras: Sequence[Camera],
    precision: Precision,
    folder: Path,
) -> None:
    """Write vision_{rows}x{columns}.onnx for every grid, over one vision.bin."""
    with WeightFile(folder / "vision.bin") as weights:
        for rows, columns in sorted({camera.grid[1:] for camera in cameras}):
            linear = LINEARS[precision.vision](precision.int4_block)
            ops = OrtOps(source, weights, linear)
            vision_tower(ops, geometry.vision, static_windows(geometry.vision, rows, columns))
            ops.save(folder / f"vision_{rows}x{columns}.onnx", "vision")


def emit_language(
    source: WeightSource,
    geometry: Geometry,
    precision: Precision,
    folder: Path,
) -> None:
    """Write language.onnx and text_head.onnx, each with its weights."""
    for name, describe in (("language", language_model), ("text_head", text_head)):
        with WeightFile(folder / f"{name}.bin") as weights:
            ops = OrtOps(source, weights, LINEARS[precision.language](precision.int4_block))
            describe(ops, geometry.language)
            ops.save(folder / f"{name}.onnx", name)
