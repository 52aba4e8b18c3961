"""The engines of a bundle, opened: each backend's library is imported only for its own bundles."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from autovla_rt.bundle import Bundle
from autovla_rt.errors import BundleError, InputError
from autovla_rt.machine import usable_cores
from autovla_rt.runtime.backends import LanguageEngine, VisionEngine
from autovla_rt.runtime.backends.executor import Device
from autovla_rt.runtime.memory import require_memory

BACKENDS = ("ort", "openvino", "standard", "tensorrt")
"""Backends that this version runs; the last on an NVIDIA GPU, the others on the CPU."""


def open_engines(
    bundle: Bundle, threads: int | None, *, use_prefix: bool = True
) -> tuple[VisionEngine, LanguageEngine]:
    """Open the engines of a bundle's backend.

    Without `use_prefix` the language engine starts empty (to check that nothing changes).

    Raises:
        BundleError: this version has no such backend, or the engines do not load.
        DependencyError: the backend's library is missing or of another release.
        InputError: `threads` is not from 1 to the number of cores.
        MemoryShortageError: there is too little memory; nothing was loaded.
    """
    require_threads(threads)
    backend = bundle.manifest.backend
    if backend not in BACKENDS:
        raise BundleError(
            f"{bundle.folder}: built for the backend {backend!r} (target "
            f"{bundle.manifest.target}), expected one of {', '.join(BACKENDS)}. Run it on its own "
            "device, or build an engine for this one."
        )
    if backend == "tensorrt":
        from autovla_rt.runtime.backends.tensorrt import TensorRtDevice

        return _device_engines(bundle, TensorRtDevice(bundle), use_prefix=use_prefix)
    require_memory(bundle)
    if backend == "openvino":
        from autovla_rt.runtime.backends.openvino import OpenVinoLanguage, OpenVinoVision

        # Compiling takes one core. The language model orders its weights here, the vision tower
        # its own in its first pass, so that not both are in memory twice.
        with ThreadPoolExecutor(1) as beside:
            vision = beside.submit(OpenVinoVision, bundle, threads)
            language = OpenVinoLanguage(bundle, threads, use_prefix=use_prefix)
            return vision.result(), language
    if backend == "standard":
        from autovla_rt.runtime.backends.onnx_executor import OnnxDevice

        return _device_engines(bundle, OnnxDevice(threads), use_prefix=use_prefix)
    from autovla_rt.runtime.backends.ort import OrtLanguage, OrtVision

    return OrtVision(bundle, threads), OrtLanguage(bundle, threads, use_prefix=use_prefix)


def _device_engines(
    bundle: Bundle, device: Device, *, use_prefix: bool
) -> tuple[VisionEngine, LanguageEngine]:
    from autovla_rt.runtime.backends.device_engine import DeviceLanguage, DeviceVision

    # On queues of their own, so that one camera is seen while the one before is read.
    vision = DeviceVision(bundle, device.beside())
    return vision, DeviceLanguage(bundle, device, use_prefix=use_prefix)


def require_threads(threads: int | None) -> None:
    """Refuse 0, which ONNX Runtime reads as every core, and more threads than can run at once.

    Raises:
        InputError: `threads` is such a number.
    """
    cores = usable_cores()
    if threads is not None and not 1 <= threads <= cores:
        raise InputError(
            f"threads: expected 1 to {cores} (the cores of this process), got {threads}.\n"
            "Leave it out to use every core."
        )
