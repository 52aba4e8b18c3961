"""The GPU kernels of a bundle: compiled for its target, beside its graphs."""

from __future__ import annotations

from pathlib import Path

from autovla_rt.config import Geometry
from autovla_rt.kernels.aot import compile_kernels
from autovla_rt.kernels.variants import variants


def emit_kernels(geometry: Geometry, sm: int, folder: Path) -> None:
    """Compile the kernels that a model needs into `folder`.

    Raises:
        DependencyError: Triton is not installed.
        TargetError: it does not compile for the compute capability.
    """
    vision = geometry.vision
    needed = variants(
        patch=vision.patch_size,
        merge=vision.spatial_merge_size,
        clip=vision.temporal_patch_size,
        hidden_size=geometry.language.hidden_size,
    )
    compile_kernels(folder, sm, needed)
