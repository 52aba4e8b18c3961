"""Launching compiled GPU kernels through NVIDIA's driver: no Triton, no torch, no compiler."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autovla_rt.cubin import Cubin, read_cubin, read_index
from autovla_rt.errors import DependencyError, DeviceError, TargetError

LIMITS = {"pointer": 2**64 - 1, "int32": 2**31 - 1}
"""Kind of argument -> largest value."""


class CudaKernels:
    """The kernels of a folder, loaded on the device of the current CUDA context.

    Device memory is the caller's; only the machine code takes some, as long as the context lives.

    Args:
        folder: What `kernels/aot.py` wrote for one compute capability.

    Raises:
        BundleError: the folder's index or a kernel is missing or altered.
        DependencyError: cuda-bindings or the driver is missing.
        DeviceError: there is no current context, or the driver refuses a kernel.
        TargetError: the device has another compute capability.
    """

    def __init__(self, folder: Path) -> None:
        self._driver = open_driver()
        self._index = index = read_index(folder)
        found = compute_capability(self._driver)
        if found != index.sm:
            raise TargetError(
                f"{folder}: kernels for compute capability {index.sm}, but this device has {found}."
                f"\nCompile them for it: python -m autovla_rt.kernels.aot OUT --sm {found}"
            )
        self._functions = {
            cubin.name: self._load(cubin, read_cubin(folder, cubin)) for cubin in index.cubins
        }

    def launch(
        self,
        name: str,
        programs: tuple[int, int, int],
        arguments: Mapping[str, int],
        stream: int = 0,
    ) -> None:
        """Put a kernel on a stream; returns before it has run.

        Args:
            name: Of the kernel.
            programs: How many, in three dimensions.
            arguments: By name: device addresses and numbers.
            stream: Handle of a CUDA stream; 0 is the default one.

        Raises:
            BundleError: there is no such kernel.
            DeviceError: an argument is missing, unknown or out of range, or the driver refuses.
        """
        cubin = self._index.find(name)
        # The driver copies them before it returns.
        slots = pack_arguments(cubin, arguments)
        places = slots.ctypes.data + slots.itemsize * np.arange(len(slots), dtype=np.uint64)
        launched = self._driver.cuLaunchKernel(
            self._functions[name],
            *programs,
            *(cubin.threads, 1, 1),
            cubin.shared_bytes,
            stream,
            places.ctypes.data,
            0,
        )
        require_success(self._driver, launched, f"launch {name} with {dict(arguments)}")

    def _load(self, cubin: Cubin, code: bytes) -> Any:
        driver, image = self._driver, np.frombuffer(code, np.uint8)
        loading = driver.cuModuleLoadData(image.ctypes.data)
        (module,) = require_success(driver, loading, f"load {cubin.file}")
        finding = driver.cuModuleGetFunction(module, cubin.entry.encode())
        (function,) = require_success(driver, finding, f"find {cubin.entry} in {cubin.file}")
        shared = driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
        setting = driver.cuFuncSetAttribute(function, shared, cubin.shared_bytes)
        require_success(driver, setting, f"give {cubin.name} {cubin.shared_bytes} bytes shared")
        return function


def open_driver() -> ModuleType:
    """Return NVIDIA's driver, initialised.

    Raises:
        DependencyError: cuda-bindings is not installed, or there is no driver or no device.
    """
    try:
        from cuda.bindings import driver
    except ModuleNotFoundError as error:
        raise DependencyError(
            "GPU kernels are launched through cuda-bindings, which is not installed: "
            "pip install 'autovla-rt[jetson]'"
        ) from error
    try:
        (status,) = driver.cuInit(0)
    except RuntimeError as error:  # no libcuda on this machine
        raise DependencyError(f"GPU kernels need NVIDIA's driver: {error}") from error
    if status.value:
        raise DependencyError(
            f"cuInit: expected a device of NVIDIA's, got {status.name}. Check nvidia-smi."
        )
    opened: ModuleType = driver
    return opened


def compute_capability(driver: ModuleType) -> int:
    """Return that of the current context's device, without the dot.

    Raises:
        DeviceError: there is no current context.
    """
    (device,) = require_success(driver, driver.cuCtxGetDevice(), "find the context's device")
    names = driver.CUdevice_attribute
    major, minor = (
        require_success(driver, driver.cuDeviceGetAttribute(name, device), f"read {name.name}")[0]
        for name in (
            names.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR,
            names.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR,
        )
    )
    return int(major) * 10 + int(minor)


def require_success(driver: ModuleType, result: tuple[Any, ...], what: str) -> tuple[Any, ...]:
    """Return what a call of the driver gave.

    Raises:
        DeviceError: it failed.
    """
    status, *values = result
    if status.value:
        _, text = driver.cuGetErrorString(status)
        raise DeviceError(
            f"The GPU's driver could not {what}: {status.name} ({(text or b'').decode()})."
        )
    return tuple(values)


def pack_arguments(cubin: Cubin, arguments: Mapping[str, int]) -> NDArray[np.uint64]:
    """Return a kernel's arguments in order, one in each 8 bytes, Triton's null pointers last.

    Raises:
        DeviceError: one is missing, unknown or out of range.
    """
    names = [argument.name for argument in cubin.arguments]
    if set(names) != set(arguments):
        raise DeviceError(
            f"kernel {cubin.name}: expected the arguments {', '.join(names)}, "
            f"got {', '.join(arguments)}."
        )
    slots = np.zeros(len(names) + cubin.hidden_pointers, np.uint64)
    for place, argument in enumerate(cubin.arguments):
        value = arguments[argument.name]
        limit = LIMITS[argument.kind]
        if not 0 <= value <= limit or value % argument.multiple:
            raise DeviceError(
                f"kernel {cubin.name}, {argument.name} ({argument.kind}): expected a multiple of "
                f"{argument.multiple} from 0 to {limit}, got {value}."
            )
        slots[place] = value
    return slots
