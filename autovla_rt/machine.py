"""What the CPU of this machine can do, and what of it is ours."""

from __future__ import annotations

import os
import platform
import resource
from dataclasses import dataclass
from pathlib import Path

CPUINFO, MEMINFO = Path("/proc/cpuinfo"), Path("/proc/meminfo")
CGROUP, STATUS = Path("/sys/fs/cgroup"), Path("/proc/self/status")

AMX = "AMX int8"
"""Products of int8 in tiles, a state of the CPU that libraries share."""

FEATURES = {
    "AVX2": ("avx2",),
    "AVX-512": ("avx512f",),
    "VNNI": ("avx512_vnni", "avx_vnni"),
    "BF16": ("avx512_bf16", "amx_bf16", "bf16"),
    AMX: ("amx_int8",),
    "dot product": ("asimddp",),
    "I8MM": ("i8mm",),
}
"""What matters to engines -> the flags of /proc/cpuinfo that mean it, on x86 or ARM."""


@dataclass(frozen=True)
class Machine:
    """A machine as an engine sees it.

    Attributes:
        architecture: As `platform.machine` names it.
        cores: Cores that this process may use.
        features: Names of `FEATURES`.
        memory: Bytes that are free to be taken, None where the system does not tell.
    """

    architecture: str
    cores: int
    features: tuple[str, ...]
    memory: int | None

    @property
    def is_x86(self) -> bool:
        """Whether it runs x86-64 code."""
        return self.architecture in ("x86_64", "AMD64")


def this_machine() -> Machine:
    """Look at this one."""
    cpuinfo = CPUINFO.read_text() if CPUINFO.exists() else ""
    return Machine(platform.machine(), usable_cores(), cpu_features(cpuinfo), free_memory())


def peak_memory() -> int:
    """Return the most bytes that this process had in memory, as the kernel counts them.

    Not `getrusage`, whose figure begins with that of the process which started this one.
    """
    status = STATUS.read_text() if STATUS.exists() else ""
    for line in status.splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) << 10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


def usable_cores() -> int:
    """Count the cores that this process may use (a container may have fewer than the machine)."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def cpu_features(cpuinfo: str) -> tuple[str, ...]:
    """Return the features in the text of /proc/cpuinfo, in the order of `FEATURES`."""
    lines = (line.partition(":") for line in cpuinfo.splitlines())
    flags = {word for key, _, value in lines if _is_flags(key) for word in value.split()}
    return tuple(name for name, words in FEATURES.items() if flags & {*words})


def free_memory() -> int | None:
    """Return bytes that can be taken without swapping, within this process's control group."""
    free = _meminfo("MemAvailable:")
    limit, used = (_number(CGROUP / name) for name in ("memory.max", "memory.current"))
    if free is None or limit is None or used is None:
        return free
    return min(free, max(limit - used, 0))


def free_swap() -> int:
    """Return bytes of swap that are free; 0 where that is not known."""
    return _meminfo("SwapFree:") or 0


def _meminfo(name: str) -> int | None:
    """Return a line of /proc/meminfo in bytes; None where there is none."""
    if not MEMINFO.exists():
        return None
    fields = (line.split() for line in MEMINFO.read_text().splitlines())
    return next((int(field[1]) * 1024 for field in fields if field[0] == name), None)


def _is_flags(key: str) -> bool:
    return key.strip() in ("flags", "Features")  # x86, ARM


def _number(path: Path) -> int | None:
    """Read a control group's number; None where there is none, or no limit."""
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None
