"""OpenVINO reports nothing, and another release than the one it was made for is refused."""

import subprocess
import sys

import pytest

from autovla_rt import openvino_model
from autovla_rt.demo.world_engine import build_world_engine
from autovla_rt.errors import BundleError, DependencyError
from autovla_rt.runtime.planner import Planner


@pytest.fixture(scope="module")
def engine(demo, tmp_path_factory):
    folder = tmp_path_factory.mktemp("x86") / "engine"
    build_world_engine(demo.base.parent, folder, "int8", "x86")
    return folder


def imported(code, home):
    subprocess.run([sys.executable, "-c", code], check=True, env={"HOME": str(home)}, timeout=60)
    return [path for path in home.rglob("*") if path.is_file()]


def test_it_identifies_nobody(tmp_path):
    assert imported("from autovla_rt.openvino_library import ov; ov.Core()", tmp_path) == []
    assert imported("import openvino", tmp_path) != []  # as it does by itself


def test_other_packages_still_have_the_telemetry_of_their_own():
    code = "import autovla_rt.openvino_library, openvino_telemetry"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_another_release_is_refused(engine, monkeypatch):
    monkeypatch.setattr(openvino_model.ov, "__version__", "2026.3.0-1")
    with pytest.raises(DependencyError, match=r"expected OpenVINO 2026\.4, got 2026\.3\.0-1"):
        Planner.load(engine)


def test_files_that_are_no_model_are_refused(tmp_path):
    (tmp_path / "m.xml").write_text("<net/>")
    (tmp_path / "m.bin").write_bytes(b"0000")
    with pytest.raises(BundleError, match="cannot read the model"):
        openvino_model.OpenVinoModel(tmp_path / "m.xml")
    (tmp_path / "m.bin").unlink()
    with pytest.raises(BundleError, match="cannot read the model"):
        openvino_model.OpenVinoModel(tmp_path / "m.xml")
