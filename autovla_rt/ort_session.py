"""ONNX Runtime sessions on the CPU, opened the same way by builds and by the runtime."""

from __future__ import annotations

from pathlib import Path

from autovla_rt.errors import BundleError
from autovla_rt.onnx_runtime import ort

PROVIDER = "CPUExecutionProvider"
CPUINFO = Path("/proc/cpuinfo")


def int8_kernels_saturate(cpuinfo: str) -> bool:
    """Whether ONNX Runtime's uint8 x int8 kernels add products in 16 bits on this CPU.

    They do on x86 without VNNI: full-range operands come out up to 18 % wrong. `cpuinfo` is the
    text of /proc/cpuinfo; ARM lists "Features", not "flags".
    """
    flags = next((line for line in cpuinfo.splitlines() if line.startswith("flags")), "")
    return bool(flags) and "vnni" not in flags


def open_session(path: Path, threads: int | None, *, rewrite: bool = True) -> ort.InferenceSession:
    """Open a graph on the CPU provider, and on nothing else.

    Without `rewrite` it is computed node by node as it is written, and nothing is fused.

    Raises:
        BundleError: ONNX Runtime cannot load the graph or took another provider.
    """
    options = ort.SessionOptions()
    if not rewrite:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    if threads is not None:
        options.intra_op_num_threads = threads
    if int8_kernels_saturate(CPUINFO.read_text() if CPUINFO.exists() else ""):
        # Compute in uint8 x uint8: exact, and there as fast. Never on a CPU with VNNI, which would
        # lose a factor of six.
        options.add_session_config_entry("session.x64quantprecision", "1")
    try:
        session = ort.InferenceSession(str(path), options, providers=[PROVIDER])
    except Exception as error:  # ONNX Runtime raises its own unrelated classes
        raise BundleError(
            f"{path}: ONNX Runtime {ort.__version__} cannot load the graph: {error}\n"
            "Build the bundle again, or install the version that `autovla-rt inspect` names."
        ) from error
    if session.get_providers() != [PROVIDER]:
        raise BundleError(
            f"{path}: expected provider {PROVIDER}, got {session.get_providers()}. "
            "Uninstall onnxruntime-gpu or use its own environment."
        )
    return session
