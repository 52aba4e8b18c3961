"""What this machine can run, what its backends lack, and what mends it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from autovla_rt.cuda_driver import Driver, NoDriver, probe
from autovla_rt.errors import DependencyError
from autovla_rt.export.targets import TARGETS, target_of
from autovla_rt.machine import Machine, this_machine
from autovla_rt.nvidia_findings import Finding, nvidia_findings
from autovla_rt.onnx_runtime import ort
from autovla_rt.runtime.device import device_name
from autovla_rt.runtime.jetson import Board, this_board

PORTABLE, FASTEST_X86 = "cpu", "x86"
"""Targets of the CPU backends."""

IDENTITY = (
    b'\x08\n:7\n\x10\n\x01x\x12\x01y"\x08Identity\x12\x01gZ\x0f\n\x01x\x12\n\n\x08\x08\x01\x12\x04'
    b"\n\x02\x08\x01b\x0f\n\x01y\x12\n\n\x08\x08\x01\x12\x04\n\x02\x08\x01B\x04\n\x00\x10\x14"
)
"""An ONNX model y = x over one float32."""

CPU_PROVIDER = "CPUExecutionProvider"
SILENT = 4


@dataclass(frozen=True)
class Diagnosis:
    """All that was found out.

    Attributes:
        device: Name of the board, or of the CPU.
        machine: Its CPU and free memory.
        driver: NVIDIA's driver and its GPUs, or why there is none.
        board: What a Jetson says of itself; None on another machine.
        findings: Of each backend.
    """

    device: str
    machine: Machine
    driver: Driver | NoDriver
    board: Board | None
    findings: tuple[Finding, ...]

    @property
    def target(self) -> str:
        """The target to build engines for on this machine: of the fastest backend that works."""
        works = {finding.backend for finding in self.findings if finding.works}
        name = self.gpu_target
        if name is not None and TARGETS[name].backend in works:
            return name
        return FASTEST_X86 if self.machine.is_x86 and "openvino" in works else PORTABLE

    @property
    def gpu_target(self) -> str | None:
        """The target that the first GPU is; None without one, or where it is none."""
        if isinstance(self.driver, NoDriver):
            return None
        gpu = self.driver.devices[0]
        return target_of(gpu.sm, gpu.memory, self.board.name if self.board else "")

    @property
    def advice(self) -> tuple[str, ...]:
        """What to build for, what is lacking, what that costs and what mends it."""
        told = [f"Build engines of a real checkpoint with --target {self.target}."]
        told += self._gpu_advice()
        if self.board is not None:
            told += [f"For steady figures on the board: {fix}." for fix in self.board.fixes]
        return (*told, *cpu_advice(self.machine))

    def _gpu_advice(self) -> list[str]:
        if isinstance(self.driver, NoDriver):
            return []
        name, gpu = self.gpu_target, self.driver.devices[0]
        if name is None:
            return [f"{gpu.name} (SM {gpu.sm / 10:.1f}) is no target: see autovla-rt targets."]
        return [] if name == self.target else [f"Export for {gpu.name} with --target {name}."]

    def as_dict(self) -> dict[str, Any]:
        """Plain containers, ready for JSON."""
        told = {"target": self.target, "gpu_target": self.gpu_target, "advice": self.advice}
        return {**asdict(self), **told}


def diagnose() -> Diagnosis:
    """Examine this machine; every backend that is installed and has its device is tried."""
    machine, driver = this_machine(), probe()
    findings = (_onnx_runtime(), _openvino(machine), *nvidia_findings(driver))
    return Diagnosis(device_name(), machine, driver, this_board(), findings)


def cpu_advice(machine: Machine) -> list[str]:
    """Say what this CPU lacks and what that costs."""
    told = []
    if machine.is_x86:
        if "AVX2" not in machine.features:
            told.append("No AVX2: engines run, but were never measured on such a CPU.")
        if "VNNI" not in machine.features:
            told.append(
                "No VNNI: products of int8 take several instructions each. A request at the 3B "
                "geometry in int4 took 63 s on two cores with AVX2 alone, 17 s with VNNI."
            )
        if "BF16" not in machine.features:
            told.append(
                "No bfloat16: OpenVINO computes in float32 between products instead, which takes "
                "8 % longer for a prefill and 13 % for the vision tower."
            )
    elif "dot product" not in machine.features:
        told.append("No dot product instructions: int8 was never measured on such a CPU.")
    if machine.cores == 1:
        told.append("One core: the engine and the frames' decoding take turns.")
    return told


def _onnx_runtime() -> Finding:
    """Run a model on every provider that the library lists."""
    listed = ort.get_available_providers()
    works = [provider for provider in listed if _provider_works(provider)]
    idle = [provider for provider in listed if provider not in works]
    found = f"ONNX Runtime {ort.__version__}: {', '.join(works) or 'no provider'} works"
    if idle:
        found += f"; listed, but not usable here: {', '.join(idle)}"
    usable = CPU_PROVIDER in works
    fix = "" if usable else "pip install --force-reinstall onnxruntime"
    return Finding("ort", PORTABLE, usable, found, fix)


def _provider_works(provider: str) -> bool:
    """Whether a session takes this provider and computes; a failing one falls back silently."""
    options = ort.SessionOptions()
    options.log_severity_level = SILENT
    if provider != CPU_PROVIDER:
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    try:
        session = ort.InferenceSession(IDENTITY, options, providers=[provider])
        (result,) = session.run(None, {"x": np.ones(1, np.float32)})
    except Exception:  # ONNX Runtime raises its own unrelated classes
        return False
    return bool(session.get_providers()[0] == provider and result[0] == 1)


def _openvino(machine: Machine) -> Finding:
    fix = "pip install 'autovla-rt[openvino]'"
    if not machine.is_x86:
        found = f"needs an x86 CPU, got {machine.architecture}"
        return Finding("openvino", FASTEST_X86, False, found)
    try:
        from autovla_rt.openvino_model import runs_here  # takes the library along

        version = runs_here()
    except DependencyError as error:
        return Finding("openvino", FASTEST_X86, False, str(error).splitlines()[0], fix)
    except RuntimeError as error:
        return Finding("openvino", FASTEST_X86, False, f"cannot compute: {error}", fix)
    return Finding("openvino", FASTEST_X86, True, f"OpenVINO {version}: CPU works")
