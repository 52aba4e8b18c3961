"""The command that compiles a bundle's graphs for a GPU."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from autovla_rt.errors import DependencyError

ASSUMED_MEMORY = 8 << 30
"""Bytes of a GPU that is not there."""


def compile_(
    engine: Annotated[Path, typer.Option(help="Engine bundle of an NVIDIA target.")],
    again: Annotated[bool, typer.Option("--again", help="Replace plans that are there.")] = False,
    without_gpu: Annotated[
        bool,
        typer.Option(
            "--without-gpu",
            help="Check the graphs here with TensorRT for RTX, which compiles for a GPU that is "
            "not there: rtx-* targets. The plans do not run on a device.",
        ),
    ] = False,
    memory_unchecked: Annotated[
        bool,
        typer.Option("--memory-unchecked", help="Compile even where memory seems too little."),
    ] = False,
) -> None:
    """Compile a bundle's graphs with TensorRT, on the device that it was built for."""
    from autovla_rt.bundle import load_bundle
    from autovla_rt.compile_engine import compile_engine
    from autovla_rt.cuda_driver import NoDriver, probe
    from autovla_rt.machine import free_memory, free_swap
    from autovla_rt.runtime.backends.tensorrt import load_tensorrt

    bundle = load_bundle(engine)
    if without_gpu:
        sm, device, cuda = bundle.manifest.sm or 0, "none: compiled without a GPU", None
        compiler, memory = load_tensorrt("tensorrt_rtx"), ASSUMED_MEMORY
    else:
        driver = probe()
        if isinstance(driver, NoDriver):
            raise DependencyError(
                f"compiling for a GPU needs it here: {driver.reason}\n"
                f"Run this on the device; or {driver.fix}; or check the graphs with --without-gpu."
            )
        gpu = driver.devices[0]
        sm, device, memory, cuda = gpu.sm, gpu.name, gpu.memory, driver.cuda
        compiler = load_tensorrt()

    def told(line: str) -> None:
        typer.echo(line, err=True)

    free = free_memory()
    folder = compile_engine(
        bundle,
        compiler,
        sm=sm,
        device=device,
        memory=memory,
        cuda=cuda,
        free=None if free is None or memory_unchecked else free + free_swap(),
        told=told,
        again=again,
    )
    typer.echo(f"compiled: {folder}", err=True)
