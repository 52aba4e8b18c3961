"""OpenVINO reports nothing, and another release than the one it was made for is refused."""

import gc
import shutil
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from demo_engine import FRAMES

from autovla_rt import openvino_model
from autovla_rt.bundle import Bundle, load_bundle
from autovla_rt.demo.world_engine import build_world_engine
from autovla_rt.errors import BundleError, DependencyError
from autovla_rt.runtime.engines import open_engines
from autovla_rt.runtime.planner import Planner
from autovla_rt.runtime.scene import read_frames_dir


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


def mapped_kib(path):
    """Resident kibibytes of a file's mappings, those of what nobody uses any more left out."""
    gc.collect()
    total, inside = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if "-" in line.split()[0]:
            inside = line.endswith(f" {path}")
        elif inside and line.startswith("Rss:"):
            total += int(line.split()[1])
    return total


def test_the_files_pages_are_let_go_once_the_weights_are_in_order(engine, monkeypatch):
    request = read_frames_dir(FRAMES)
    released = Planner.load(engine)
    assert mapped_kib(engine / "language.bin") == 0
    assert released.plan(request).status == "ok"
    assert mapped_kib(engine / "vision_8x14.bin") == 0  # in order only since the first request
    del released
    monkeypatch.setattr(openvino_model.OpenVinoModel, "_pages_let_go", lambda _: nullcontext())
    kept = Planner.load(engine)
    assert mapped_kib(engine / "language.bin") > 1000
    assert kept.plan(request).status == "ok"


def test_pages_are_let_go_while_a_first_pass_goes_on(engine, monkeypatch):
    monkeypatch.setattr(openvino_model, "LET_GO_SECONDS", 0.001)
    model = openvino_model.OpenVinoModel(next(engine.glob("vision_*.xml")))
    touched = np.frombuffer(model._mapping, np.uint8)
    with model._pages_let_go():
        assert touched.max() > 0
        time.sleep(0.1)
        assert mapped_kib(engine / "vision_8x14.bin") == 0


def test_an_engine_that_cannot_be_opened_is_told_as_ever(engine, tmp_path):
    whole = tmp_path / "engine"
    shutil.copytree(engine, whole)
    (whole / "vision_8x14.xml").write_bytes(b"no model")
    with pytest.raises(BundleError, match=r"vision_8x14\.xml: OpenVINO .* cannot read the model"):
        open_engines(Bundle(whole, load_bundle(engine).manifest, ""), 1)


def test_a_cpu_without_bfloat16_plans_and_tells(engine, monkeypatch, caplog):
    request = read_frames_dir(FRAMES)
    usual = Planner.load(engine).plan(request, mode="fast")
    if openvino_model.has_bfloat16():
        assert caplog.text == ""
    monkeypatch.setattr(openvino_model, "has_bfloat16", lambda: False)
    without = Planner.load(engine).plan(request, mode="fast")
    np.testing.assert_allclose(without.trajectory, usual.trajectory, atol=2)
    assert "language.xml: built to compute in bf16 between products, this CPU computes in f32" in (
        caplog.text
    )


def test_a_prefix_of_float32_is_rounded_to_bfloat16():
    values = np.random.default_rng(0).standard_normal((3, 70, 4)).astype(np.float32)
    rounded = openvino_model._bfloat16_bits(values)
    np.testing.assert_array_equal(rounded, values.astype(ml_dtypes.bfloat16).view(np.uint16))
    again = (rounded.astype(np.uint32) << 16).view(np.float32)
    np.testing.assert_array_equal(openvino_model._bfloat16_bits(again), rounded)


def test_a_stored_language_model_is_whole_without_its_cache(demo, tmp_path):
    build_world_engine(demo.base.parent, tmp_path / "engine", "fp32", "x86")
    bundle = load_bundle(tmp_path / "engine")
    _, language = open_engines(bundle, 1, use_prefix=False)
    embeddings = language.embed(np.arange(100, 140))
    stored = openvino_model.OpenVinoModel(bundle.path("language.xml"))
    stored.compile(1, bundle.manifest.precision, "fp32")
    tables = {name: table[:40] for name, table in language._tables.items()}
    (alone,) = stored.run({"embeddings": embeddings, "rows": np.arange(40), **tables}, "hidden")
    np.testing.assert_allclose(alone, language.extend(embeddings), atol=1e-4)
