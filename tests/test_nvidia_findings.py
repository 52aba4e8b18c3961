"""What is said of NVIDIA's libraries: installed, tried, and with which result."""

import os
import subprocess
import sys

import pytest
from demo_engine import REPO

from autovla_rt import nvidia_findings as nvidia
from autovla_rt.cuda_driver import Device, Driver, NoDriver, probe
from autovla_rt.nvidia_trial import TRIALS

GPU = Driver("13.0", (Device("NVIDIA H100", 90, 80 << 30, False),))
NO_GPU = NoDriver("libcuda.so.1: cannot open shared object file", "install the driver")


@pytest.fixture
def packages(tmp_path, monkeypatch):
    """Modules that can be imported, here and in a process of its own."""

    def install(**sources):
        for name, source in sources.items():
            (tmp_path / f"{name}.py").write_text(source)
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}")

    return install


def found(driver, backend):
    return next(of for of in nvidia.nvidia_findings(driver) if of.backend == backend)


def test_every_library_has_a_trial():
    assert {library.module for library in nvidia.LIBRARIES} == {*TRIALS}


@pytest.mark.parametrize("driver", [GPU, NO_GPU])
def test_what_is_not_installed_is_told_with_its_install(driver):
    finding = found(driver, "tensorrt-llm")
    assert not finding.works
    assert finding.found == "tensorrt_llm is not installed in this environment"
    assert finding.fix.startswith("pip install tensorrt-llm")


def test_nothing_is_tried_without_a_driver(packages):
    packages(tensorrt_llm="raise SystemExit('tried')")
    finding = found(NO_GPU, "tensorrt-llm")
    assert not finding.works
    assert finding.found == f"tensorrt_llm is installed; not tried: {NO_GPU.reason}"
    assert finding.fix == "install the driver"


def test_a_library_works_only_where_it_was_tried(packages):
    packages(tensorrt_llm="", tensorrt_edgellm="")
    assert found(GPU, "tensorrt-llm").works
    broken = found(GPU, "edgellm")
    assert not broken.works
    assert "tried: ModuleNotFoundError: No module named 'tensorrt_edgellm.runtime'" in broken.found


@pytest.mark.parametrize(
    ("release", "said"),
    [
        ("10.3.0", "older than 10.15: build its bundles with --tensorrt 10.3.0"),
        ("8.6.1", "older than 10.3, the oldest that bundles can be built for"),
        ("10.15.1", ""),
        ("11.5.0", ""),
    ],
)
def test_a_tensorrt_that_lacks_layers_is_told_how_to_build_for_it(
    packages, tmp_path, monkeypatch, release, said
):
    packages(tensorrt="")
    (tmp_path / f"tensorrt-{release}.dist-info").mkdir()
    metadata = f"Metadata-Version: 2.1\nName: tensorrt\nVersion: {release}\n"
    (tmp_path / f"tensorrt-{release}.dist-info" / "METADATA").write_text(metadata)
    monkeypatch.setattr(nvidia, "trial", lambda _module: None)
    finding = found(GPU, "tensorrt")
    assert finding.works
    told = f"tensorrt {release}: {TRIALS['tensorrt'][1]}"
    assert finding.found == (f"{told}; {said}" if said else told)


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("raise RuntimeError('no device')", "RuntimeError: no device"),
        ("raise SystemExit(3)", "exit code 3"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "ended by signal 11"),
    ],
)
def test_a_library_that_ends_its_process_does_not_end_this_one(packages, source, said):
    packages(tensorrt_llm=source)
    assert nvidia.trial("tensorrt_llm") == said


def test_a_library_that_hangs_is_given_up(packages, monkeypatch):
    packages(tensorrt_llm="import time; time.sleep(60)")
    monkeypatch.setattr(nvidia, "TRIAL_SECONDS", 0.5)
    assert nvidia.trial("tensorrt_llm") == "no answer in 0.5 s"


def test_tensorrt_for_rtx_loads_no_engine_without_a_gpu(monkeypatch):
    if isinstance(probe(), Driver):
        pytest.skip("there is a GPU here")
    assert nvidia.trial("tensorrt_rtx") == "RuntimeError: tensorrt_rtx loads no engine"


def test_edgellms_runtime_is_not_loaded_without_a_gpu(monkeypatch):
    python = REPO / ".venv-edgellm" / "bin" / "python"
    if not python.exists():
        pytest.skip(f"{python} is missing: make .venv-edgellm/stamp")
    if isinstance(probe(), Driver):
        pytest.skip("there is a GPU here")
    monkeypatch.setattr(sys, "executable", str(python))
    monkeypatch.setenv("PYTHONPATH", str(REPO))
    said = nvidia.trial("tensorrt_edgellm")
    assert said is not None
    assert "Error" in said
    assert subprocess.run([python, "-c", "import tensorrt_edgellm"], check=False).returncode == 0
