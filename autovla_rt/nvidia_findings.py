"""What NVIDIA's libraries do on this machine, each tried where a driver works."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

from autovla_rt.config import TENSORRT_SINCE
from autovla_rt.cuda_driver import Driver, NoDriver
from autovla_rt.nvidia_trial import TRIALS
from autovla_rt.versions import dotted, read_version

TRIAL_SECONDS = 180


@dataclass(frozen=True)
class Finding:
    """What was found out about one backend.

    Attributes:
        backend: Its name.
        targets: What engines for it are built with.
        works: Whether it was tried here, just now, and did what `found` says.
        found: Version and what was tried.
        fix: The command that makes it work; "" where nothing is to be done, or can be.
    """

    backend: str
    targets: str
    works: bool
    found: str
    fix: str = ""


@dataclass(frozen=True)
class Library:
    """One of NVIDIA's libraries.

    Attributes:
        backend: What it is called here.
        module: What Python imports.
        packages: Names that it is distributed under.
        targets: What it is for.
        install: The command that installs it.
    """

    backend: str
    module: str
    packages: tuple[str, ...]
    targets: str
    install: str


JETSON_OR_PIP = "sudo apt install nvidia-jetpack (Jetson), or pip install tensorrt"

LIBRARIES = (
    Library(
        "tensorrt",
        "tensorrt",
        ("tensorrt", "tensorrt-cu13", "tensorrt-cu12"),
        "NVIDIA targets",
        JETSON_OR_PIP,
    ),
    Library(
        "tensorrt-rtx",
        "tensorrt_rtx",
        ("tensorrt-rtx-cu13", "tensorrt-rtx-cu12", "tensorrt-rtx"),
        "rtx-*",
        "pip install tensorrt-rtx-cu13",
    ),
    Library(
        "edgellm",
        "tensorrt_edgellm",
        ("tensorrt-edgellm",),
        "orin-*, agx-*, drive-thor",
        "pip install tensorrt-edgellm==0.11.0 (an environment of its own)",
    ),
    Library(
        "tensorrt-llm",
        "tensorrt_llm",
        ("tensorrt-llm",),
        "rtx-*, h100",
        "pip install tensorrt-llm (an environment of its own)",
    ),
)


def nvidia_findings(driver: Driver | NoDriver) -> Iterator[Finding]:
    """Try each library; none without a driver."""
    for library in LIBRARIES:
        if find_spec(library.module) is None:
            found = f"{library.module} is not installed in this environment"
            yield Finding(library.backend, library.targets, False, found, library.install)
        elif isinstance(driver, NoDriver):
            found = f"{_named(library)} is installed; not tried: {driver.reason}"
            yield Finding(library.backend, library.targets, False, found, driver.fix)
        else:
            yield _tried(library)


def _tried(library: Library) -> Finding:
    failure = trial(library.module)
    does = TRIALS[library.module][1]
    if failure is None:
        found = f"{_named(library)}: {does}{_told_of_old_one(library)}"
        return Finding(library.backend, library.targets, True, found)
    found = f"{_named(library)}, tried: {failure}"
    return Finding(library.backend, library.targets, False, found, library.install)


def trial(module: str) -> str | None:
    """Try a library in a process of its own; return why it does not work, None where it does."""
    words = [sys.executable, "-m", "autovla_rt.nvidia_trial", module]
    try:
        done = subprocess.run(
            words, capture_output=True, text=True, timeout=TRIAL_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        return f"no answer in {TRIAL_SECONDS} s"
    if done.returncode == 0:
        return None
    if done.returncode < 0:
        return f"ended by signal {-done.returncode}"
    said = (done.stderr or done.stdout).strip().splitlines()
    return said[-1] if said else f"exit code {done.returncode}"


def _told_of_old_one(library: Library) -> str:
    """Say what bundles a TensorRT needs that lacks the newer layers."""
    _, found = _installed(library)
    oldest, newest = TENSORRT_SINCE["plain"], TENSORRT_SINCE["standard"]
    if library.module != "tensorrt" or not found or read_version(found) >= newest:
        return ""
    if read_version(found) < oldest:
        return f"; older than {dotted(oldest)}, the oldest that bundles can be built for"
    return f"; older than {dotted(newest)}: build its bundles with --tensorrt {found}"


def _named(library: Library) -> str:
    package, found = _installed(library)
    return f"{package} {found}" if found else library.module


def _installed(library: Library) -> tuple[str, str]:
    """Return the package that a library was installed by, and its version; "" where none is."""
    for package in library.packages:
        try:
            return package, version(package)
        except PackageNotFoundError:
            continue
    return "", ""
