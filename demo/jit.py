"""Numba kernels of the world: compiled once, kept in the user's cache or in NUMBA_CACHE_DIR."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar, cast

import numba
from numba.core import config

Function = TypeVar("Function", bound=Callable[..., object])


def _cache_folder() -> Path:
    """One folder for each state of this package: numba notices no change in a callee."""
    digest = hashlib.sha256()
    for source in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(source.read_bytes())
    folder = f"numba-{digest.hexdigest()[:16]}"
    if chosen := os.environ.get("NUMBA_CACHE_DIR"):
        return Path(chosen) / folder
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "autovla-rt" / folder


setattr(config, "CACHE_DIR", str(_cache_folder()))  # noqa: B010 (no attribute to mypy)


def kernel(function: Function) -> Function:
    """Compile a function of numbers and arrays, to run without the interpreter's lock.

    Its types stay those of the Python source.
    """
    compile_it = numba.njit(cache=True, nogil=True, error_model="numpy")
    return cast("Function", compile_it(function))
