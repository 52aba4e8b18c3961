import json
import sys

import onnxruntime
import pytest
from onnx import TensorProto, helper

from autovla_rt import openvino_model
from autovla_rt.machine import Machine
from autovla_rt.runtime import doctor
from autovla_rt.runtime.doctor import IDENTITY, Finding, advice, diagnose, recommended_target

X86 = Machine("x86_64", 8, ("AVX2", "AVX-512", "VNNI", "BF16"), 2**34)
OLD = Machine("x86_64", 8, ("AVX2",), 2**34)
OLDEST = Machine("x86_64", 1, (), None)
ORIN = Machine("aarch64", 12, ("dot product",), 2**36)
ORT = Finding("ort", "cpu", True, "ONNX Runtime")
OPENVINO = Finding("openvino", "x86", True, "OpenVINO")
NO_OPENVINO = Finding("openvino", "x86", False, "", "pip install")


def test_this_machine_runs_what_it_says(invoke):
    found = {finding.backend: finding for finding in diagnose().findings}
    assert found["ort"].works
    assert onnxruntime.__version__ in found["ort"].found
    assert found["openvino"].works
    assert not found["tensorrt"].works
    report = invoke.json("doctor", "--json")
    assert report["target"] == "x86"
    assert report["machine"]["cores"] >= 1
    code, out, _ = invoke("doctor")
    assert code == 0
    assert "--target x86" in " ".join(out.split())


@pytest.mark.parametrize(
    ("machine", "findings", "target"),
    [
        (X86, (ORT, OPENVINO), "x86"),
        (X86, (ORT, NO_OPENVINO), "cpu"),
        (ORIN, (ORT, OPENVINO), "cpu"),
    ],
)
def test_the_fastest_backend_that_works_is_recommended(machine, findings, target):
    assert recommended_target(machine, findings) == target
    assert advice(machine, findings)[0].endswith(f"--target {target}.")


def test_what_a_cpu_lacks_is_told_with_its_cost():
    assert len(advice(X86, (ORT, OPENVINO))) == 1
    told = " ".join(advice(OLD, (ORT, OPENVINO)))
    assert "No VNNI" in told
    assert "63 s" in told
    assert "No bfloat16" in told
    assert "No AVX2" not in told
    assert "No AVX2" in " ".join(advice(OLDEST, (ORT,)))
    assert "One core" in " ".join(advice(OLDEST, (ORT,)))
    assert len(advice(ORIN, (ORT,))) == 1
    assert "dot product" in " ".join(advice(Machine("aarch64", 4, (), None), (ORT,)))


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
    found = doctor._openvino(ORIN)
    assert not found.works
    assert "aarch64" in found.found
    assert json.dumps(found.fix) == '""'
