"""The graphs of an engine, in any dialect, with their weights.

Every function streams: one matrix chunk of the checkpoint is in memory at a time (an int8 matrix
of the `ort` dialect is held whole while it is transposed).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from autovla_rt.config import Camera, Geometry
from autovla_rt.export.graph.dialect import Dialect, Formats
from autovla_rt.export.graph.language import language_model, text_head
from autovla_rt.export.graph.vision import vision_tower
from autovla_rt.export.passes.static_windows import static_windows
from autovla_rt.export.weight_file import WeightFile
from autovla_rt.export.weight_source import WeightSource


def emit_vision(
    dialect: Dialect,
    source: WeightSource,
    geometry: Geometry,
    cameras: Sequence[Camera],
    formats: Formats,
    folder: Path,
) -> None:
    """Write vision_{rows}x{columns} for every grid, and the weights."""
    with _weights(dialect, folder / "vision.weights") as weights:
        for rows, columns in sorted({camera.grid[1:] for camera in cameras}):
            ops = dialect.ops(source, weights, formats)
            vision_tower(ops, geometry.vision, static_windows(geometry.vision, rows, columns))
            ops.save(folder / f"vision_{rows}x{columns}{dialect.suffix}", "vision")


def emit_language(
    dialect: Dialect,
    source: WeightSource,
    geometry: Geometry,
    formats: Formats,
    folder: Path,
) -> None:
    """Write the language model and the text head, each with its weights."""
    for name, describe in (("language", language_model), ("text_head", text_head)):
        with _weights(dialect, folder / f"{name}.weights") as weights:
            ops = dialect.ops(source, weights, formats)
            describe(ops, geometry.language)
            ops.save(folder / f"{name}{dialect.suffix}", name)


@contextmanager
def _weights(dialect: Dialect, path: Path) -> Iterator[WeightFile]:
    """Open a weight file, which is gone afterwards where nothing refers to it."""
    if dialect.keeps_weights:
        path = path.with_suffix(".bin")
    try:
        with WeightFile(path) as weights:
            yield weights
    finally:
        if not dialect.keeps_weights:
            path.unlink(missing_ok=True)
