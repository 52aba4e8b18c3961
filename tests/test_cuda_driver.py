"""The probe of NVIDIA's driver, against stand-ins of libcuda.so.1 that are compiled here.

A driver that works is tested in tests/gpu.
"""

import shutil
import subprocess

import pytest

from autovla_rt import cuda_driver
from autovla_rt.cuda_driver import Device, Driver, NoDriver, probe

SOURCE = """
#include <stddef.h>
#include <string.h>
int cuInit(unsigned flags) { return INIT; }
int cuDriverGetVersion(int *version) { *version = 13020; return 0; }
int cuDeviceGetCount(int *count) { *count = COUNT; return 0; }
int cuDeviceGet(int *device, int index) { *device = 7 + index; return 0; }
int cuDeviceGetName(char *name, int size, int device) {
  strncpy(name, device == 7 ? "Orin" : "NVIDIA RTX", size); return 0; }
int cuDeviceTotalMem_v2(size_t *bytes, int device) { *bytes = (size_t)device << 33; return MEMORY; }
int cuDeviceGetAttribute(int *value, int which, int device) {
  *value = which == 75 ? (device == 7 ? 8 : 12) : which == 76 ? (device == 7 ? 7 : 0) : device == 7;
  return which == 75 || which == 76 || which == 18 ? 0 : 1; }
int cuGetErrorName(int error, const char **name) {
  *name = error == 100 ? "CUDA_ERROR_NO_DEVICE" : 0; return 0; }
"""


@pytest.fixture
def library(tmp_path, monkeypatch):
    """Make libcuda.so.1 a library that answers as it is told."""
    if (compiler := shutil.which("cc")) is None:
        pytest.skip("there is no C compiler for a stand-in of libcuda.so.1")

    def install(init=0, count=2, memory=0):
        source, path = tmp_path / "cuda.c", tmp_path / f"cuda{init}_{count}_{memory}.so"
        values = {"INIT": init, "COUNT": count, "MEMORY": memory}
        source.write_text("".join(f"#define {k} {v}\n" for k, v in values.items()) + SOURCE)
        subprocess.run([compiler, "-shared", "-fPIC", "-o", path, source], check=True)
        monkeypatch.setattr(cuda_driver, "LIBRARY", str(path))

    return install


def test_every_gpu_is_described(library):
    library()
    assert probe() == Driver(
        "13.2",
        (Device("Orin", 87, 7 << 33, True), Device("NVIDIA RTX", 120, 8 << 33, False)),
    )


def test_a_missing_library_is_named_with_what_installs_it(monkeypatch):
    monkeypatch.setattr(cuda_driver, "LIBRARY", "libcuda-that-is-nowhere.so.1")
    found = probe()
    assert isinstance(found, NoDriver)
    assert found.reason.startswith("libcuda-that-is-nowhere.so.1: cannot open shared object file")
    assert "sudo ubuntu-drivers install" in found.fix
    assert "nvidia-jetpack" in found.fix


@pytest.mark.parametrize(
    ("answers", "reason", "fix"),
    [
        ({"init": 100}, "cuInit says CUDA_ERROR_NO_DEVICE (100)", "CUDA_VISIBLE_DEVICES"),
        ({"init": 34}, "cuInit says unknown (34)", "lib64/stubs"),
        ({"init": 999}, "cuInit says unknown (999)", "dmesg"),
        ({"count": 0}, "cuDeviceGetCount says 0", "docker run --gpus all"),
        ({"memory": 2}, "cuDeviceTotalMem_v2 says unknown (2)", "dmesg"),
    ],
)
def test_a_call_that_fails_is_told_with_its_code_and_mend(library, answers, reason, fix):
    library(**answers)
    found = probe()
    assert isinstance(found, NoDriver)
    assert found.reason == reason
    assert fix in found.fix
