"""Compiling a bundle's graphs, with NVIDIA's compiler for GeForce RTX, and what loads of them."""

import json
import shutil
from types import ModuleType

import pytest
from demo_engine import REPO, contents, run

from autovla_rt import machine
from autovla_rt.bundle import load_bundle
from autovla_rt.compile_engine import compile_engine
from autovla_rt.errors import BundleError, MemoryShortageError, TargetError
from autovla_rt.plans import RECORD, read_plans
from autovla_rt.runtime.backends.tensorrt import require_driver, require_gpu_memory, require_sm

RTX = pytest.importorskip("tensorrt_rtx")
SIZE = ("--frame-size", "392x224")
CALL = {
    "sm": 86,
    "device": "A10",
    "memory": 1 << 30,
    "cuda": "13.0",
    "free": None,
    "told": print,
}
PLAN = ("plan", "--frames", REPO / "calib_data/demo", "--engine")


def built(demo, folder, target, precision="fp16", *options):
    chosen = ("--target", target, "--precision", precision, *SIZE, *options, "--out", folder)
    done = run("build", *demo.build_options, *chosen, cache=folder.parent)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def original(demo, tmp_path_factory):
    """A bundle for SM 8.6 with plans that were compiled without a GPU."""
    folder = built(demo, tmp_path_factory.mktemp("compiled") / "engine", "rtx-sm86")
    done = run("compile", "--engine", folder, "--without-gpu", cache=folder.parent)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def compiled(original, tmp_path):
    shutil.copytree(original, tmp_path / "engine")
    return tmp_path / "engine"


def read(folder, library="tensorrt_rtx", version=RTX.__version__, sm=86):
    return read_plans(load_bundle(folder), library, version, sm)


def test_plans_are_of_the_bundle_and_say_how_they_were_made(compiled):
    folder, record = read(compiled)
    assert (record.sm, record.version, record.device[:4]) == (86, RTX.__version__, "none")
    assert set(record.files) == {"language.plan", "text_head.plan", "vision_8x14.plan"}
    for name, of in record.files.items():
        assert (folder / name).stat().st_size == of.size > 100_000
    assert "LayerType: gemm" in (folder / "language.layers.txt").read_text()
    assert folder.with_name(f"{folder.name}-timing.cache").exists()


def test_a_bundle_stays_a_bundle_and_is_replaced_with_its_plans(demo, compiled):
    load_bundle(compiled, verify=True)
    built(demo, compiled, "rtx-sm86")
    assert not (compiled / "plans").exists()


def test_what_is_compiled_is_left_alone_until_it_is_to_be_made_again(invoke, compiled):
    before = contents(compiled)
    code, _, said = invoke("compile", "--engine", compiled, "--without-gpu")
    assert (code, contents(compiled)) == (0, before)
    assert "--again" in said
    folder, _ = read(compiled)
    (folder / "language.plan").write_bytes(b"damaged")
    assert invoke("compile", "--engine", compiled, "--without-gpu", "--again")[0] == 0
    read(compiled)


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ({"version": "9.9"}, "expected plans of tensorrt_rtx 9.9 for SM 8.6, got tensorrt_rtx-"),
        ({"sm": 89}, "for SM 8.9, got tensorrt_rtx-"),
        ({"library": "tensorrt"}, "expected plans of tensorrt "),
    ],
)
def test_plans_of_another_version_gpu_or_library_are_refused_naming_both(compiled, asked, told):
    with pytest.raises(BundleError) as raised:
        read(compiled, **asked)
    assert told in str(raised.value)
    assert f"autovla-rt compile --engine {compiled}" in str(raised.value)


def test_plans_of_another_bundle_are_refused(demo, compiled, tmp_path):
    other = built(demo, tmp_path / "other", "rtx-sm86", "int8_wo")
    shutil.copytree(compiled / "plans", other / "plans")
    with pytest.raises(BundleError, match="of the bundle"):
        read(other)


@pytest.mark.parametrize("damage", ["truncated", "altered", "gone", "unlisted", "record"])
def test_damaged_plans_are_refused(compiled, damage):
    folder, _ = read(compiled)
    path, record = folder / "language.plan", folder / RECORD
    content = bytearray(path.read_bytes())
    match damage:
        case "truncated":
            path.write_bytes(content[:-1])
        case "altered":
            content[1000] ^= 1
            path.write_bytes(content)
        case "gone":
            path.unlink()
        case "unlisted":
            listed = json.loads(record.read_text())
            del listed["files"]["language.plan"]
            record.write_text(json.dumps(listed))
        case "record":
            record.write_text("{}")
    with pytest.raises(BundleError, match="--again"):
        read(compiled)


def test_without_a_gpu_compiling_for_one_says_why(invoke, compiled):
    said = invoke.refused(11, "compile", "--engine", compiled)
    assert "--without-gpu" in said


def test_without_tensorrt_a_plan_is_refused_with_the_line_that_installs_it(invoke, compiled):
    assert "pip install tensorrt" in invoke.refused(11, *PLAN, compiled)


def test_a_gpu_that_the_compiler_does_not_know_is_refused(demo, invoke, tmp_path):
    folder = built(demo, tmp_path / "engine", "agx-orin-64")
    said = invoke.refused(8, "compile", "--engine", folder, "--without-gpu")
    assert "SM 8.7: expected one of" in said
    assert not list(folder.glob("plans/*/*"))


def test_a_bundle_for_an_old_tensorrt_is_compiled_and_says_what_it_is_for(demo, tmp_path):
    folder = built(demo, tmp_path / "engine", "rtx-sm86", "fp16", "--tensorrt", "10.3.0")
    done = run("compile", "--engine", folder, "--without-gpu", cache=tmp_path)
    assert done.returncode == 0, done.stderr
    assert load_bundle(folder).manifest.dialect == "plain"
    shown = run("inspect", folder, cache=tmp_path).stdout
    assert "plain, for TensorRT 10.3 or newer" in " ".join(shown.split())
    plans, _ = read(folder)
    layers = (plans / "language.layers.txt").read_text()
    assert "KV_CACHE" not in layers.upper()


def test_a_tensorrt_that_lacks_layers_of_the_graphs_is_refused_naming_both(original):
    old = ModuleType("tensorrt")  # asked for its name and version alone
    old.__version__ = "10.3.0"
    with pytest.raises(TargetError) as raised:
        compile_engine(load_bundle(original), old, **CALL)
    assert "need TensorRT 10.15 or newer, got 10.3.0" in str(raised.value)
    assert "--tensorrt 10.3.0" in str(raised.value)


@pytest.mark.parametrize(
    ("target", "version", "code", "told"),
    [
        ("cpu", "10.3", 8, "--tensorrt 10.3: expected a target of TensorRT's"),
        ("agx-orin-64", "8.6", 8, "--tensorrt 8.6: expected 10.3 (JetPack 6) or newer"),
        ("agx-orin-64", "new", 3, "--tensorrt new: expected a version such as 10.3"),
    ],
)
def test_a_version_that_cannot_be_built_for_is_refused(
    demo, invoke, tmp_path, target, version, code, told
):
    words = ("--target", target, "--precision", "int8_wo", "--tensorrt", version)
    out = tmp_path / "engine"
    said = invoke.refused(code, "build", *demo.build_options, *words, "--out", out)
    assert told in said
    assert not out.exists()


def test_a_bundle_of_a_cpu_is_refused(demo, invoke):
    said = invoke.refused(8, "compile", "--engine", demo.engine, "--without-gpu")
    assert "built for cpu (ort, SM none)" in said


def test_an_engine_of_one_gpu_is_refused_on_another_naming_both(compiled):
    with pytest.raises(TargetError) as raised:
        require_sm(load_bundle(compiled), 90, "NVIDIA H100")
    assert "built for rtx-sm86 (SM 8.6), got NVIDIA H100 (SM 9.0)" in str(raised.value)
    require_sm(load_bundle(compiled), 86, "NVIDIA A10")


def test_compiling_with_too_little_memory_is_refused_before_work(compiled, monkeypatch, invoke):
    monkeypatch.setattr(machine, "free_memory", lambda: 1 << 20)
    monkeypatch.setattr(machine, "free_swap", lambda: 1 << 20)
    before = contents(compiled)
    words = ("compile", "--engine", compiled, "--without-gpu")
    assert invoke(*words)[0] == 0  # compiled already
    shutil.rmtree(compiled / "plans")
    said = invoke.refused(13, *words)
    assert "of free memory to compile it" in said
    assert "got 0.0 GiB, swap included" in said
    assert not (compiled / "plans").exists()
    assert invoke(*words, "--memory-unchecked")[0] == 0
    assert contents(compiled).keys() == before.keys()


def test_plans_of_a_newer_driver_are_refused_naming_both(compiled):
    bundle, (_, record) = load_bundle(compiled), read(compiled)
    require_driver(bundle, record, "12.0")  # compiled without a GPU
    made = record.model_copy(update={"cuda": "13.10"})
    with pytest.raises(BundleError) as raised:
        require_driver(bundle, made, "13.2")
    assert "a driver that runs CUDA 13.10, got one that runs 13.2" in str(raised.value)
    require_driver(bundle, made, "13.10")
    require_driver(bundle, made, "14.0")


def test_a_gpu_with_too_little_free_memory_is_refused_with_both_numbers(compiled):
    bundle, (_, record) = load_bundle(compiled), read(compiled)
    with pytest.raises(MemoryShortageError, match=r"about 1\.0 GiB .* got 0\.5 GiB"):
        require_gpu_memory(bundle, record, 1 << 29)
    require_gpu_memory(bundle, record, 2 << 30)
