"""TensorRT on an NVIDIA GPU: a bundle's plans, on the device that they were compiled on.

Typed against NVIDIA's module and tried on it as far as that goes without a GPU; no engine was
executed by the authors: none of the machines at hand has TensorRT and a GPU.
"""

from __future__ import annotations

import importlib
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autovla_rt.bundle import Bundle, Manifest
from autovla_rt.config import KV_COPIES, Camera
from autovla_rt.errors import BundleError, DependencyError, MemoryShortageError, TargetError
from autovla_rt.plans import CompiledPlans, plan_name, read_plans
from autovla_rt.runtime.backends import Float
from autovla_rt.runtime.backends.cuda_device import CudaDevice
from autovla_rt.runtime.backends.cuda_kernels import CudaKernels
from autovla_rt.runtime.backends.gpu_action_head import GpuActionHead
from autovla_rt.runtime.backends.gpu_frame_patches import GpuFramePatches
from autovla_rt.runtime.backends.tensorrt_executor import Module, TensorRtExecutor
from autovla_rt.versions import read_version

if TYPE_CHECKING:
    import tensorrt_rtx

LIBRARY = "tensorrt"

INSTALL = {
    LIBRARY: "pip install tensorrt (a Jetson's is in JetPack: sudo apt install nvidia-jetpack)",
    "tensorrt_rtx": "pip install tensorrt-rtx-cu13",
}
"""Module that compiles -> how it is had."""

WORKING_BYTES = 1 << 30
"""Of the GPU's memory, beside plans and keys and values: its context, libraries, scratch."""


def load_tensorrt(library: str = LIBRARY) -> Module:
    """Import TensorRT, or TensorRT for RTX.

    Raises:
        DependencyError: it is not installed, or does not load.
    """
    try:
        return importlib.import_module(library)
    except (ImportError, OSError, RuntimeError) as error:
        raise DependencyError(
            f"engines for NVIDIA's GPUs need {library}: {error}\nInstall it: {INSTALL[library]}"
        ) from error


def require_sm(bundle: Bundle, found: int, device: str) -> None:
    """Refuse a bundle of another GPU.

    Raises:
        TargetError: its compute capability is not `found`.
    """
    manifest = bundle.manifest
    if manifest.sm != found:
        built = "no GPU" if manifest.sm is None else f"SM {manifest.sm / 10:.1f}"
        raise TargetError(
            f"{bundle.folder}: built for {manifest.target} ({built}), got {device} "
            f"(SM {found / 10:.1f}).\nRun it on its own device, or build an engine with the "
            "--target of this one: autovla-rt targets."
        )


def require_gpu_memory(bundle: Bundle, plans: CompiledPlans, free: int) -> None:
    """Refuse an engine that a GPU has not enough free memory for, before anything is loaded.

    Raises:
        MemoryShortageError: it needs more than `free` bytes.
    """
    manifest = bundle.manifest
    kept = 2 * manifest.geometry.language.kept_numbers * manifest.kv_capacity
    kept *= KV_COPIES[manifest.dialect]
    needed = sum(of.size for of in plans.files.values()) + kept + WORKING_BYTES
    if needed > free:
        raise MemoryShortageError(
            f"{bundle.folder}: expected about {needed / 2**30:.1f} GiB of free GPU memory (plans, "
            f"keys and values, {WORKING_BYTES / 2**30:.0f} GiB to work in), got "
            f"{free / 2**30:.1f} GiB.\nEnd other programs, or build the engine with --precision "
            "int4_awq or a smaller --kv-capacity."
        )


def require_driver(bundle: Bundle, plans: CompiledPlans, found: str) -> None:
    """Refuse plans that were compiled with a newer driver.

    Raises:
        BundleError: theirs ran a newer CUDA than `found`.
    """
    if plans.cuda is not None and read_version(found) < read_version(plans.cuda):
        raise BundleError(
            f"{bundle.folder}: compiled with a driver that runs CUDA {plans.cuda}, got one that "
            f"runs {found}.\nUpdate the driver (on a Jetson JetPack), or compile the plans again: "
            f"autovla-rt compile --engine {bundle.folder} --again"
        )


class TensorRtDevice(CudaDevice):
    """The GPU, and the plans of one bundle for it.

    Raises:
        DependencyError: TensorRT, cuda-bindings, the driver or a GPU is missing.
        TargetError: the bundle is for another GPU.
        BundleError: there are no plans for this version of TensorRT and this GPU, or no kernels, or
            damaged ones, or plans of a newer driver.
        MemoryShortageError: the GPU has too little free memory.
    """

    def __init__(self, bundle: Bundle) -> None:
        self._trt = load_tensorrt()
        with suppress(ModuleNotFoundError):
            importlib.import_module("nvtx")  # from here on stages are ranges of it: trace.py
        super().__init__()
        require_sm(bundle, self.sm, self.name)
        version = self._trt.__version__
        self._folder, plans = read_plans(bundle, LIBRARY, version, self.sm)
        require_driver(bundle, plans, self.cuda)
        require_gpu_memory(bundle, plans, self.free_memory())
        self._kernels = CudaKernels(bundle.folder)
        self._logger = self._trt.Logger(self._trt.Logger.WARNING)
        self._runtime: tensorrt_rtx.Runtime = self._trt.Runtime(self._logger)

    def action_head(self, weight: Float) -> GpuActionHead:
        """Return the kernel that the bundle was built with."""
        return GpuActionHead(self, self._kernels, weight)

    def frame_patches(self, camera: Camera, manifest: Manifest) -> GpuFramePatches:
        """Return the kernel that makes a camera's frames patches."""
        return GpuFramePatches(self, self._kernels, camera, manifest)

    def open(self, graph: Path) -> TensorRtExecutor:
        """Load the plan of a bundle's graph.

        Raises:
            BundleError: TensorRT does not take it.
        """
        path = self._folder / plan_name(graph.name)
        engine: Any = self._runtime.deserialize_cuda_engine(path.read_bytes())
        if engine is None:
            raise BundleError(
                f"{path}: {LIBRARY} {self._trt.__version__} cannot load it; its log says why.\n"
                "Compile it again: autovla-rt compile --again."
            )
        return TensorRtExecutor(self._trt, engine, self, path.name)
