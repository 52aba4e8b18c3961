"""Compiling a bundle's graphs for a GPU: on the device, or for one that the compiler knows."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from autovla_rt.bundle import Bundle, FileRecord, sha256_of
from autovla_rt.bundle_writer import folder_writer, storage_error
from autovla_rt.config import TENSORRT_SINCE
from autovla_rt.errors import MemoryShortageError, TargetError
from autovla_rt.export.emit.tensorrt import EnginePlan, Sizes, build_engine_plan
from autovla_rt.export.engine_memory import LANGUAGE, VISION, compiler_memory
from autovla_rt.output_file import write_file
from autovla_rt.plans import RECORD, CompiledPlans, graphs_of, plan_name, plans_folder
from autovla_rt.runtime.backends.device_engine import PASS_SIZES
from autovla_rt.runtime.backends.tensorrt import LIBRARY
from autovla_rt.versions import dotted, read_version

WORKSPACE_SHARE = 8
"""One of so many parts of the GPU's memory may be taken by a tactic while it computes."""

TIMING_CACHE = "timing.cache"

USUAL_PASS = 12
"""Rows of the pass that is the most frequent: a scaffold with ten actions."""

Sizing = Mapping[str, Sizes]


def pass_profiles(bundle: Bundle) -> list[Sizing]:
    """Return the sizes of a language model's passes: the short ones, then a prompt's.

    k rows enter a pass, m of their states are read. A prompt is passed camera by camera. `batch`
    temporal patches of one camera enter the vision tower, one in a stream.
    """
    cameras, capacity = bundle.manifest.cameras, bundle.manifest.kv_capacity
    short = PASS_SIZES[-1]
    batch = Sizes(1, 1, max(camera.grid[0] for camera in cameras))
    usual = min(max(len(bundle.prompt().prefix_ids) // len(cameras), short + 1), capacity)
    few = Sizes(1, 2, short)
    return [
        {"k": Sizes(1, USUAL_PASS, short), "m": few, "batch": batch},
        {"k": Sizes(short + 1, usual, capacity), "m": Sizes(1, 2, capacity), "batch": batch},
    ]


def compile_engine(
    bundle: Bundle,
    compiler: Any,
    *,
    sm: int,
    device: str,
    memory: int,
    cuda: str | None,
    free: int | None,
    told: Callable[[str], None],
    again: bool = False,
) -> Path:
    """Compile every graph of a bundle; returns the folder, which is written at once.

    Args:
        bundle: Of the `standard` dialect.
        compiler: The module tensorrt or tensorrt_rtx.
        sm: Compute capability that it is for.
        device: The GPU's name, or that there is none.
        memory: Bytes of the GPU's memory, which the workspace is fitted to.
        cuda: Newest CUDA that the driver runs, as 13.0; None without a GPU.
        free: Bytes of the host's memory, swap included, that are free; None is not held against
            what compiling takes.
        told: Is called with what was done.
        again: Replace plans that are there.

    Raises:
        TargetError: the bundle is for another GPU, backend or a newer TensorRT, or the compiler
            refuses a graph.
        MemoryShortageError: there is too little memory; nothing was compiled.
        StorageError: the file system refused.
    """
    manifest = bundle.manifest
    if manifest.backend != "tensorrt" or manifest.sm != sm:
        raise TargetError(
            f"{bundle.folder}: built for {manifest.target} ({manifest.backend}, "
            f"SM {_capability(manifest.sm)}), expected a bundle of a GPU with SM {sm / 10:.1f} "
            f"({device}).\nBuild one with the --target of this GPU: autovla-rt targets."
        )
    _require_version(bundle, compiler)
    folder = plans_folder(bundle, compiler.__name__, compiler.__version__, sm)
    if again:
        _remove(folder)
    if folder.exists():
        told(f"{folder} is compiled; --again compiles anew")
        return folder
    _require_memory(bundle, free)
    workspace = memory // WORKSPACE_SHARE
    profiles = pass_profiles(bundle)
    cache_path = folder.with_name(f"{folder.name}-{TIMING_CACHE}")
    cache = cache_path.read_bytes() if cache_path.exists() else b""
    files, layers, seconds = {}, {}, {}
    with folder_writer(folder) as building:
        for graph in graphs_of(bundle):
            start = time.perf_counter()
            made = build_engine_plan(
                compiler, bundle.path(graph), sm, profiles, workspace=workspace, timing_cache=cache
            )
            cache = made.timing_cache
            files[plan_name(graph)] = _write(building, graph, made)
            layers[graph] = made.layers
            seconds[graph] = round(time.perf_counter() - start, 2)
            told(
                f"{graph}: {made.layers} layers, {len(made.plan) / 1e6:.1f} MB, {seconds[graph]} s"
            )
        record = CompiledPlans(
            bundle=bundle.identity,
            library=compiler.__name__,
            version=compiler.__version__,
            sm=sm,
            device=device,
            cuda=cuda,
            workspace=workspace,
            files=files,
            layers=layers,
            seconds=seconds,
        )
        (building / RECORD).write_text(record.model_dump_json(indent=1) + "\n")
    write_file(cache_path, cache)
    return folder


def _require_version(bundle: Bundle, compiler: Any) -> None:
    """Refuse a TensorRT that lacks layers of the graphs; TensorRT for RTX has all of them."""
    found, needed = compiler.__version__, TENSORRT_SINCE[bundle.manifest.dialect]
    if compiler.__name__ == LIBRARY and read_version(found) < needed:
        raise TargetError(
            f"{bundle.folder}: its graphs need TensorRT {dotted(needed)} or newer, got "
            f"{found}.\nBuild the bundle again with --tensorrt {found}."
        )


def _require_memory(bundle: Bundle, free: int | None) -> None:
    least, most = compiler_memory(bundle.manifest.geometry, (VISION, LANGUAGE))
    if free is not None and free < least:
        raise MemoryShortageError(
            f"{bundle.folder}: expected {least / 2**30:.1f} to {most / 2**30:.1f} GiB of free "
            "memory to compile it (an estimate: 3 to 4 bytes for each parameter of its largest "
            f"part), got {free / 2**30:.1f} GiB, swap included.\nEnd other programs, add swap, or "
            "compile all the same with --memory-unchecked."
        )


def _write(building: Path, graph: str, made: EnginePlan) -> FileRecord:
    """Write a plan, and what the compiler says of its layers."""
    path = building / plan_name(graph)
    path.write_bytes(made.plan)
    path.with_suffix(".layers.txt").write_text(made.compiled + "\n")
    return FileRecord(size=path.stat().st_size, sha256=sha256_of(path))


def _remove(folder: Path) -> None:
    """Remove compiled plans, and nothing else."""
    if not (folder / RECORD).exists():
        return
    try:
        for path in folder.iterdir():
            path.unlink()
        folder.rmdir()
    except OSError as error:
        raise storage_error(folder, error) from error


def _capability(sm: int | None) -> str:
    return "none" if sm is None else f"{sm / 10:.1f}"
