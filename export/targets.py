"""Devices that an engine can be built for, and what each may compute in.

Sources: NVIDIA Jetson Orin and Thor data sheets, CUDA compute capability tables. FP8 needs SM 8.9
or newer, NVFP4 SM 10.0 or newer; Orin (SM 8.7) has neither.
"""

from __future__ import annotations

from dataclasses import dataclass

from autovla_rt.errors import TargetError

X86_PRECISIONS = ("fp32", "int8", "int8_sq", "int4", "int4_awq")
CPU_PRECISIONS = (*X86_PRECISIONS, "int8_wo")
AMPERE = ("fp16", "int8", "int8_sq", "int8_wo", "int4", "int4_awq")
ADA = (*AMPERE, "fp8")
BLACKWELL = (*ADA, "nvfp4")
KV_FP8 = ("auto", "int8", "fp8")


@dataclass(frozen=True)
class Target:
    """One kind of device.

    Attributes:
        description: What it is, for people.
        sm: CUDA compute capability without the dot; None without an NVIDIA GPU.
        memory_gib: Memory that the GPU can use (unified on Jetson); None where it varies.
        precisions: Legal number formats.
        backend: What runs the engine there.
    """

    description: str
    sm: int | None
    memory_gib: int | None
    precisions: tuple[str, ...]
    backend: str
    kv: tuple[str, ...] = ("auto", "int8")
    """Legal number formats of keys and values that are kept."""


TARGETS = {
    "cpu": Target("any CPU, ONNX Runtime", None, None, CPU_PRECISIONS, "ort"),
    "x86": Target("x86-64 CPU, OpenVINO", None, None, X86_PRECISIONS, "openvino", ("auto",)),
    "orin-nano-8": Target("Jetson Orin Nano 8 GB", 87, 8, AMPERE, "tensorrt"),
    "orin-nx-8": Target("Jetson Orin NX 8 GB", 87, 8, AMPERE, "tensorrt"),
    "orin-nx-16": Target("Jetson Orin NX 16 GB", 87, 16, AMPERE, "tensorrt"),
    "agx-orin-32": Target("Jetson AGX Orin 32 GB", 87, 32, AMPERE, "tensorrt"),
    "agx-orin-64": Target("Jetson AGX Orin 64 GB", 87, 64, AMPERE, "tensorrt"),
    "agx-thor": Target("Jetson AGX Thor 128 GB", 110, 128, BLACKWELL, "tensorrt", KV_FP8),
    "drive-thor": Target("DRIVE AGX Thor", 110, None, BLACKWELL, "tensorrt", KV_FP8),
    "rtx-sm86": Target("GeForce RTX 30, A10, A40", 86, None, AMPERE, "tensorrt"),
    "rtx-sm89": Target("GeForce RTX 40, L4, L40", 89, None, ADA, "tensorrt", KV_FP8),
    "rtx-sm120": Target(
        "GeForce RTX 50, RTX PRO Blackwell", 120, None, BLACKWELL, "tensorrt", KV_FP8
    ),
    "h100": Target("H100 80 GB", 90, 80, ADA, "tensorrt", KV_FP8),
}

BUILDABLE_BACKENDS = ("ort", "openvino")
"""Backends that this version builds bundles for."""


def check_target(name: str, precision: str) -> Target:
    """Return the target if it exists and may compute in `precision`.

    Raises:
        TargetError: otherwise, with the legal choices.
    """
    if name not in TARGETS:
        raise TargetError(f"target {name!r}: expected one of {', '.join(TARGETS)}.")
    target = TARGETS[name]
    if precision not in target.precisions:
        raise TargetError(
            f"precision {precision!r} on {name} ({target.description}{_capability(target)}): "
            f"expected one of {', '.join(target.precisions)}. Choose one with --precision."
        )
    return target


def check_buildable(name: str) -> None:
    """Refuse a target that bundles cannot be built for.

    Raises:
        TargetError: so it is.
    """
    target = TARGETS[name]
    if target.backend not in BUILDABLE_BACKENDS:
        buildable = [key for key, value in TARGETS.items() if value.backend in BUILDABLE_BACKENDS]
        raise TargetError(
            f"target {name} ({target.description}) is legal, but bundles for its backend "
            f"{target.backend} cannot be built by this version. Expected --target "
            f"{' or '.join(buildable)}; autovla-rt export writes ONNX for {name}."
        )


def _capability(target: Target) -> str:
    return "" if target.sm is None else f", SM {target.sm // 10}.{target.sm % 10}"
