"""NVIDIA's driver, asked itself: libcuda.so.1 by ctypes, no torch, no list of providers.

`cuInit` loads the driver into the process and makes no context, so nothing is taken of a GPU's
memory.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

LIBRARY = "libcuda.so.1"

SUCCESS, STUB_LIBRARY, NO_DEVICE = 0, 34, 100
MAJOR, MINOR, INTEGRATED = 75, 76, 18
"""CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, _MINOR and CU_DEVICE_ATTRIBUTE_INTEGRATED."""

NAME_BYTES = 256

INSTALL = (
    "sudo ubuntu-drivers install (a Jetson has it in JetPack: sudo apt install nvidia-jetpack; "
    "a container gets it by docker run --gpus all, on a Jetson --runtime nvidia)"
)
FIXES = {
    STUB_LIBRARY: "leave the CUDA toolkit's lib64/stubs out of LD_LIBRARY_PATH",
    NO_DEVICE: "unset CUDA_VISIBLE_DEVICES; in a container: docker run --gpus all",
}
"""cuInit's answer -> what mends it."""

REINSTALL = "sudo dmesg | grep -i nvrm; reboot after an update of the driver, else install it anew"


@dataclass(frozen=True)
class Device:
    """A GPU.

    Attributes:
        name: As the driver names it.
        sm: CUDA compute capability without the dot.
        memory: Bytes in all.
        is_integrated: Whether it shares the memory of the CPU, as on a Jetson.
    """

    name: str
    sm: int
    memory: int
    is_integrated: bool


@dataclass(frozen=True)
class Driver:
    """A driver that works.

    Attributes:
        cuda: Newest CUDA that it runs, as 13.0.
        devices: Its GPUs, one at least.
    """

    cuda: str
    devices: tuple[Device, ...]


@dataclass(frozen=True)
class NoDriver:
    """Why no GPU can be used, and what mends it."""

    reason: str
    fix: str


class _CallError(Exception):
    """A call of the driver that failed: its code, and what was said."""

    def __init__(self, code: int, said: str) -> None:
        super().__init__(said)
        self.code = code


def probe() -> Driver | NoDriver:
    """Initialise the driver and ask it for its GPUs, now."""
    try:
        library = ctypes.CDLL(LIBRARY)
    except OSError as error:
        return NoDriver(str(error), INSTALL)
    try:
        return _driver(library)
    except _CallError as error:
        return NoDriver(str(error), FIXES.get(error.code, REINSTALL))


def _driver(library: ctypes.CDLL) -> Driver:
    version, count = ctypes.c_int(), ctypes.c_int()
    _call(library, "cuInit", ctypes.c_uint(0))
    _call(library, "cuDriverGetVersion", ctypes.byref(version))
    _call(library, "cuDeviceGetCount", ctypes.byref(count))
    if count.value == 0:
        raise _CallError(NO_DEVICE, "cuDeviceGetCount says 0")
    cuda = f"{version.value // 1000}.{version.value % 1000 // 10}"
    return Driver(cuda, tuple(_device(library, index) for index in range(count.value)))


def _device(library: ctypes.CDLL, index: int) -> Device:
    device, name, memory = (
        ctypes.c_int(),
        ctypes.create_string_buffer(NAME_BYTES),
        ctypes.c_size_t(),
    )
    _call(library, "cuDeviceGet", ctypes.byref(device), ctypes.c_int(index))
    _call(library, "cuDeviceGetName", name, ctypes.c_int(NAME_BYTES), device)
    _call(library, "cuDeviceTotalMem_v2", ctypes.byref(memory), device)
    major, minor, integrated = (
        _attribute(library, which, device) for which in (MAJOR, MINOR, INTEGRATED)
    )
    said = name.value.decode(errors="replace")
    return Device(said, 10 * major + minor, memory.value, bool(integrated))


def _attribute(library: ctypes.CDLL, which: int, device: ctypes.c_int) -> int:
    value = ctypes.c_int()
    _call(library, "cuDeviceGetAttribute", ctypes.byref(value), ctypes.c_int(which), device)
    return value.value


def _call(library: ctypes.CDLL, function: str, *arguments: object) -> None:
    code = getattr(library, function)(*arguments)
    if code != SUCCESS:
        text = ctypes.c_char_p()
        library.cuGetErrorName(ctypes.c_int(code), ctypes.byref(text))
        name = (text.value or b"unknown").decode(errors="replace")
        raise _CallError(code, f"{function} says {name} ({code})")
