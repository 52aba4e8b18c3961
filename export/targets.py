"""Devices that an engine can be built for: what each has, and what it may compute in.

Peaks are dense (NVIDIA's headlines are sparse, twice as much) and of the GPU's tensor cores alone
(Orin's headlines add its DLA, which no engine of ours uses): AGX Orin 64's 275 TOPS are 170 of the
GPU and 105 of the DLA, and 85 of the 170 are dense. Orin's are those of the fastest power mode of
JetPack 7.2: MAXN_SUPER, or MAXN on AGX Orin 64, which has no other. What is not published stays
None. `Target.source` says where a target's figures are from; the documents were read as others
quote them.

FP8 needs SM 8.9 or newer, NVFP4 SM 10.0 or newer (CUDA's tables of compute capabilities); Orin (SM
8.7) has neither. JetPack and DriveOS are those of TensorRT Edge-LLM 0.11.1's support matrix.
"""

from __future__ import annotations

from dataclasses import dataclass

from autovla_rt.errors import TargetError

X86_PRECISIONS = ("fp32", "int8", "int8_sq", "int4", "int4_awq")
CPU_PRECISIONS = (*X86_PRECISIONS, "int8_wo")
AMPERE = ("fp16", "int8", "int8_sq", "int8_wo", "int4", "int4_awq")
ADA = (*AMPERE, "fp8")
BLACKWELL = (*ADA, "nvfp4")
KV = ("auto", "int8")
KV_FP8 = (*KV, "fp8")

NOT_PUBLISHED, VARIES = "not published", "varies"


@dataclass(frozen=True)
class Peaks:
    """Dense peaks of the tensor cores, 10^12 operations a second; None where there is no figure."""

    fp16: float | None = None
    int8: float | None = None
    fp8: float | None = None
    fp4: float | None = None


@dataclass(frozen=True)
class Recipe:
    """What a target is built in unless the user says otherwise.

    Attributes:
        precision: As `read_choice` takes it.
        reason: Why.
    """

    precision: str
    reason: str


BITS_8 = Recipe("int8", "the smallest loss of what a CPU computes fast in, without a calibration")
FLOAT_32 = Recipe("fp32", "the graphs, not a format, are what is checked there first")
INT4_DECODE = Recipe(
    "fp16/int4_awq",
    "a pass of few rows takes as long as reading weights; what NVIDIA published Orin's speed in",
)
INT8_CARD = Recipe(
    "int8_sq", "no FP8; products at twice FP16's rate, and memory fast enough to read 8 bits"
)
FLOAT_8 = Recipe("fp8", "products at twice FP16's rate, half of its weights to read")


@dataclass(frozen=True, kw_only=True)
class Target:
    """One kind of device.

    Attributes:
        description: What it is, for people.
        board: What the board's name contains, where several devices have one SM.
        sm: CUDA compute capability without the dot; None without an NVIDIA GPU.
        memory_gib: Memory that the GPU can use (unified on Jetson); None where it varies.
        bandwidth: Of that memory, 10^9 bytes a second.
        peaks: What its tensor cores compute at most.
        missing: What a figure that is None means: not published, or varies with the card.
        mode: Power mode that the figures hold in; "" where there is one.
        source: Where the figures are from.
        system: JetPack or DriveOS that its engines need; "" where neither is needed.
        precisions: Legal number formats.
        kv: Legal number formats of keys and values that are kept.
        recipe: What it is built in by default.
        backend: What runs the vision tower, and the language model where nothing else is said;
            ONNX is written for it.
        language_backend: What runs the language model.
    """

    description: str
    board: str = ""
    sm: int | None = None
    memory_gib: int | None = None
    bandwidth: float | None = None
    peaks: Peaks = Peaks()
    missing: str = NOT_PUBLISHED
    mode: str = ""
    source: str
    system: str = ""
    precisions: tuple[str, ...]
    kv: tuple[str, ...] = KV
    recipe: Recipe
    backend: str = "tensorrt"
    language_backend: str = "tensorrt"


def _orin(
    description: str,
    board: str,
    memory_gib: int,
    bandwidth: float,
    peaks: Peaks,
    source: str,
    mode: str = "MAXN_SUPER",
) -> Target:
    return Target(
        description=description,
        board=board,
        sm=87,
        memory_gib=memory_gib,
        bandwidth=bandwidth,
        peaks=peaks,
        mode=mode,
        source=source,
        system="JetPack 7.2",
        precisions=AMPERE,
        recipe=INT4_DECODE,
        language_backend="edgellm",
    )


ORIN_NX = (
    "bandwidth: data sheet DS-10712; peaks: NVIDIA's blog on JetPack 6.2, GPU at 1,173 MHz: FP16 "
    "19; INT8 dense "
)
AGX_ORIN = "memory, bandwidth: data sheet DS-10662; peaks: "
BY_CARD = "compute capability: CUDA's tables; the rest varies with the card"

TARGETS = {
    "cpu": Target(
        description="any CPU, ONNX Runtime",
        missing=VARIES,
        source="",
        precisions=CPU_PRECISIONS,
        recipe=BITS_8,
        backend="ort",
        language_backend="ort",
    ),
    "x86": Target(
        description="x86-64 CPU, OpenVINO",
        missing=VARIES,
        source="",
        precisions=X86_PRECISIONS,
        kv=("auto",),
        recipe=BITS_8,
        backend="openvino",
        language_backend="openvino",
    ),
    "cpu-standard": Target(
        description="any CPU, the GPUs' graphs in ONNX Runtime, for checking",
        missing=VARIES,
        source="",
        precisions=("fp32", *ADA),
        kv=("auto",),
        recipe=FLOAT_32,
        backend="standard",
        language_backend="standard",
    ),
    "orin-nano-8": _orin(
        "Jetson Orin Nano 8 GB",
        "Orin Nano",
        8,
        102,
        Peaks(fp16=17, int8=33),
        "NVIDIA's blog on the Orin Nano Super kit: 67 TOPS sparse, 33 dense, no DLA; FP16 17",
    ),
    "orin-nx-8": _orin(
        "Jetson Orin NX 8 GB",
        "Orin NX",
        8,
        102,
        Peaks(fp16=19, int8=38),
        f"{ORIN_NX}38, as Orin NX 16, whose GPU and clock it has",
    ),
    "orin-nx-16": _orin(
        "Jetson Orin NX 16 GB",
        "Orin NX",
        16,
        102,
        Peaks(fp16=19, int8=38),
        f"{ORIN_NX}78, 40 of them the DLA's",
    ),
    "agx-orin-32": _orin(
        "Jetson AGX Orin 32 GB",
        "AGX Orin",
        32,
        204.8,
        Peaks(fp16=37.2, int8=74.4),
        f"{AGX_ORIN}AGX Orin 64's by tensor cores (56 of 64) at the same 1.3 GHz; so much are the "
        "241 TOPS of JetPack 7.2's release notes less the DLA's 92, dense. Before: 54 at 939 MHz",
    ),
    "agx-orin-64": _orin(
        "Jetson AGX Orin 64 GB",
        "AGX Orin",
        64,
        204.8,
        Peaks(fp16=42.5, int8=85),
        f"{AGX_ORIN}technical brief v1.2, GPU at 1.3 GHz: half of 85 (FP16) and 170 (INT8) sparse",
        mode="MAXN",
    ),
    "agx-thor": Target(
        description="Jetson AGX Thor 128 GB (T5000)",
        board="Jetson",
        sm=110,
        memory_gib=128,
        bandwidth=273,
        peaks=Peaks(fp16=258.5, int8=517, fp8=517, fp4=1035),
        mode="MAXN",
        source="data sheet DS-11945 and NVIDIA's blog on Jetson Thor: dense FP4 1,035 and FP8 517; "
        "half of 1,035 (INT8) and 517 (FP16) sparse",
        system="JetPack 7.0",
        precisions=BLACKWELL,
        kv=KV_FP8,
        recipe=FLOAT_8,
        language_backend="edgellm",
    ),
    "drive-thor": Target(
        description="DRIVE AGX Thor developer kit",
        board="DRIVE",
        sm=110,
        memory_gib=64,
        bandwidth=273,
        source="DRIVE AGX Thor Development Platform (December 2025): memory and bandwidth; its "
        "1,000 INT8 TOPS and 2,000 FP4 TFLOPS are not said to be dense or sparse",
        system="DriveOS 7.2",
        precisions=BLACKWELL,
        kv=KV_FP8,
        recipe=FLOAT_8,
        language_backend="edgellm",
    ),
    "rtx-sm86": Target(
        description="GeForce RTX 30, A10, A40",
        sm=86,
        missing=VARIES,
        source=BY_CARD,
        precisions=AMPERE,
        recipe=INT8_CARD,
    ),
    "rtx-sm89": Target(
        description="GeForce RTX 40, L4, L40",
        sm=89,
        missing=VARIES,
        source=BY_CARD,
        precisions=ADA,
        kv=KV_FP8,
        recipe=FLOAT_8,
    ),
    "rtx-sm120": Target(
        description="GeForce RTX 50, RTX PRO Blackwell",
        sm=120,
        missing=VARIES,
        source=BY_CARD,
        precisions=BLACKWELL,
        kv=KV_FP8,
        recipe=FLOAT_8,
    ),
    "h100": Target(
        description="H100 SXM 80 GB",
        sm=90,
        memory_gib=80,
        bandwidth=3350,
        peaks=Peaks(fp16=989.4, int8=1978.9, fp8=1978.9),
        source="H100 data sheet (bandwidth), Hopper white paper (dense peaks, SXM5)",
        precisions=ADA,
        kv=KV_FP8,
        recipe=FLOAT_8,
    ),
}

LEAST_SHARE = 0.85
"""Of a module's memory that its system shows (7,620 of 8,192 MiB on an Orin Nano)."""


def find_target(name: str) -> Target:
    """Return a target by name.

    Raises:
        TargetError: there is none, with those that there are.
    """
    if name not in TARGETS:
        raise TargetError(f"target {name!r}: expected one of {', '.join(TARGETS)}.")
    return TARGETS[name]


def check_target(name: str, precision: str) -> Target:
    """Return the target if it exists and may compute in `precision`.

    Raises:
        TargetError: otherwise, with the legal choices.
    """
    target = find_target(name)
    if precision not in target.precisions:
        raise TargetError(
            f"precision {precision!r} on {name} ({target.description}{_capability(target)}): "
            f"expected one of {', '.join(target.precisions)}. Choose one with --precision."
        )
    return target


def target_of(sm: int, memory: int, board: str) -> str | None:
    """Return the name of a device's target, None where it has none.

    Args:
        sm: CUDA compute capability without the dot.
        memory: Bytes that its GPU sees.
        board: The board's name; "" where it has none. Devices of one SM differ by it and by memory.
    """
    same = {name: target for name, target in TARGETS.items() if target.sm == sm}
    if len(same) == 1:
        return next(iter(same))
    gib = memory / 2**30
    return next(
        (
            name
            for name, target in same.items()
            if target.board in board
            and target.memory_gib is not None
            and LEAST_SHARE * target.memory_gib <= gib <= target.memory_gib
        ),
        None,
    )


def _capability(target: Target) -> str:
    return "" if target.sm is None else f", SM {target.sm // 10}.{target.sm % 10}"
