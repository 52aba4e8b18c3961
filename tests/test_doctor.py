import json
import sys
from dataclasses import replace

import onnxruntime
import pytest
from onnx import TensorProto, helper

from autovla_rt import device_report, doctor, openvino_model
from autovla_rt.cuda_driver import Device, Driver, NoDriver, probe
from autovla_rt.doctor import IDENTITY, Diagnosis, cpu_advice, diagnose
from autovla_rt.machine import Machine
from autovla_rt.nvidia_findings import Finding
from autovla_rt.runtime.jetson import Board

X86 = Machine("x86_64", 8, ("AVX2", "AVX-512", "VNNI", "BF16"), 2**34)
OLD = Machine("x86_64", 8, ("AVX2",), 2**34)
OLDEST = Machine("x86_64", 1, (), None)
ARM = Machine("aarch64", 12, ("dot product",), 2**36)
ORT = Finding("ort", "cpu", True, "ONNX Runtime")
OPENVINO = Finding("openvino", "x86", True, "OpenVINO")
NO_OPENVINO = Finding("openvino", "x86", False, "", "pip install")
TENSORRT = Finding("tensorrt", "NVIDIA targets", True, "TensorRT")
NO_GPU = NoDriver("libcuda.so.1: cannot open shared object file", "install the driver")
H100 = Driver("13.0", (Device("NVIDIA H100 80GB HBM3", 90, 79 << 30, False),))
ORIN = Driver("13.2", (Device("Orin", 87, 61 << 30, True),))
BOARD = Board("NVIDIA Jetson AGX Orin Developer Kit", "39.2.1", None, "NV Power Mode: 30W, 2", "?")


def diagnosis(machine=X86, findings=(ORT, OPENVINO), driver=NO_GPU, board=None):
    return Diagnosis("a machine", machine, driver, board, findings)


def test_this_machine_runs_what_it_says(invoke):
    found = {finding.backend: finding for finding in diagnose().findings}
    assert found["ort"].works
    assert onnxruntime.__version__ in found["ort"].found
    assert found["openvino"].works
    assert not found["tensorrt-llm"].works
    report = invoke.json("doctor", "--json")
    assert report["target"] in ("x86", report["gpu_target"])
    assert report["machine"]["cores"] >= 1
    assert ("reason" in report["driver"]) == isinstance(probe(), NoDriver)
    code, out, _ = invoke("doctor")
    assert code == 0
    assert f"--target {report['target']}" in " ".join(out.split())


@pytest.mark.parametrize(
    ("machine", "findings", "target"),
    [
        (X86, (ORT, OPENVINO), "x86"),
        (X86, (ORT, NO_OPENVINO), "cpu"),
        (ARM, (ORT, OPENVINO), "cpu"),
    ],
)
def test_the_fastest_backend_that_works_is_recommended(machine, findings, target):
    made = diagnosis(machine, findings)
    assert made.target == target
    assert made.advice[0].endswith(f"--target {target}.")


@pytest.mark.parametrize(
    ("driver", "board", "target"),
    [(NO_GPU, None, None), (H100, None, "h100"), (ORIN, BOARD, "agx-orin-64"), (ORIN, None, None)],
)
def test_a_gpus_target_is_known_by_driver_and_board(driver, board, target):
    made = diagnosis(driver=driver, board=board)
    assert made.gpu_target == target
    assert made.as_dict()["gpu_target"] == target


def test_a_gpu_is_built_for_where_its_backend_works():
    without = diagnosis(driver=H100)
    assert without.target == "x86"
    assert "Export for NVIDIA H100 80GB HBM3 with --target h100." in without.advice
    made = diagnosis(driver=H100, findings=(ORT, OPENVINO, TENSORRT))
    assert made.target == "h100"
    assert not any("Export for" in line for line in made.advice)


def test_a_gpu_that_is_no_target_is_told():
    a100 = Driver("13.0", (Device("A100", 80, 80 << 30, False),))
    assert "A100 (SM 8.0) is no target: see autovla-rt targets." in diagnosis(driver=a100).advice


def test_a_boards_fixes_are_told():
    told = " ".join(diagnosis(ARM, (ORT,), ORIN, BOARD).advice)
    assert "sudo apt install nvidia-jetpack" in told
    assert "sudo jetson_clocks" in told


@pytest.mark.parametrize("columns", [60, 80, 200])
@pytest.mark.parametrize(("driver", "board"), [(NO_GPU, None), (ORIN, BOARD)])
def test_all_of_it_is_printed_at_any_width(capsys, monkeypatch, columns, driver, board):
    monkeypatch.setenv("COLUMNS", str(columns))
    evil = replace(ORT, found="ONNX Runtime \x1b[2J")
    device_report.print_diagnosis(diagnosis(driver=driver, board=board, findings=(evil, TENSORRT)))
    out = capsys.readouterr().out
    assert "…" not in out
    assert "\x1b" not in out
    assert max(map(len, out.splitlines())) <= columns
    words = " ".join(out.replace("│", " ").split())
    if board is None:
        assert "none: libcuda.so.1: cannot open shared object file" in words
        assert "mend it: install the driver" in words
    else:
        assert "Orin, SM 8.7, 61.0 GiB, shared with the CPU" in words
        assert "39.2.1" in words
        assert "NV Power Mode: 30W, 2" in words


def test_what_a_cpu_lacks_is_told_with_its_cost():
    assert cpu_advice(X86) == []
    told = " ".join(cpu_advice(OLD))
    assert "No VNNI" in told
    assert "63 s" in told
    assert "No bfloat16" in told
    assert "No AVX2" not in told
    assert "No AVX2" in " ".join(cpu_advice(OLDEST))
    assert "One core" in " ".join(cpu_advice(OLDEST))
    assert cpu_advice(ARM) == []
    assert "dot product" in " ".join(cpu_advice(Machine("aarch64", 4, (), None)))


def test_the_identity_is_what_onnx_writes():
    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy"]
    graph = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["y"])], "g", value[:1], value[1:]
    )
    opset = [helper.make_opsetid("", 20)]
    model = helper.make_model(graph, opset_imports=opset, ir_version=10)
    assert model.SerializeToString() == IDENTITY


def test_a_provider_that_falls_back_silently_does_not_work(monkeypatch):
    monkeypatch.setattr(
        doctor.ort,
        "get_available_providers",
        lambda: ["AzureExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"],
    )
    found = doctor._onnx_runtime()
    assert found.works
    usable, _, idle = found.found.partition("listed, but not usable here: ")
    assert "CPUExecutionProvider works" in usable
    assert idle == "AzureExecutionProvider, CUDAExecutionProvider"


def test_a_missing_or_other_openvino_is_named_with_its_mend(monkeypatch):
    monkeypatch.setattr(openvino_model.ov, "__version__", "2025.1.0")
    found = doctor._openvino(X86)
    assert not found.works
    assert "expected OpenVINO 2026.4, got 2025.1.0" in found.found
    assert "pip install 'autovla-rt[openvino]'" in found.fix
    for name in ("openvino", "autovla_rt.openvino_library", "autovla_rt.openvino_model"):
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "openvino", None)
    found = doctor._openvino(X86)
    assert not found.works
    assert "need openvino, which is not installed" in found.found


def test_no_openvino_is_looked_for_on_arm():
    found = doctor._openvino(ARM)
    assert not found.works
    assert "aarch64" in found.found
    assert json.dumps(found.fix) == '""'
