"""Models of the OpenVINO backend, in the `openvino` dialect.

Weights stream from the checkpoint into a file, are mapped from there, and copied into the models'
own: what is in memory of it at a time is the system's to decide.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from autovla_rt.config import Camera, Geometry, Precision
from autovla_rt.export.graph.language import language_model, text_head
from autovla_rt.export.graph.openvino import OpenVinoOps
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
    """Write vision_{rows}x{columns}.xml and .bin for every grid."""
    with _passing(folder) as weights:
        for rows, columns in sorted({camera.grid[1:] for camera in cameras}):
            ops = OpenVinoOps(source, weights, precision.vision, precision.int4_block)
            vision_tower(ops, geometry.vision, static_windows(geometry.vision, rows, columns))
            ops.save(folder / f"vision_{rows}x{columns}.xml", "vision")


def emit_language(
    source: WeightSource, geometry: Geometry, precision: Precision, folder: Path
) -> None:
    """Write language.xml and text_head.xml, each with its weights in a .bin."""
    for name, describe in (("language", language_model), ("text_head", text_head)):
        with _passing(folder) as weights:
            ops = OpenVinoOps(source, weights, precision.language, precision.int4_block)
            describe(ops, geometry.language)
            ops.save(folder / f"{name}.xml", name)


@contextmanager
def _passing(folder: Path) -> Iterator[WeightFile]:
    """A weight file that is gone afterwards."""
    path = folder / "weights.tmp"
    try:
        with WeightFile(path) as weights:
            yield weights
    finally:
        path.unlink(missing_ok=True)
