"""The probe of NVIDIA's driver on a GPU, against nvidia-smi and the table of targets."""

import shutil
import subprocess

import pytest

from autovla_rt.cuda_driver import NoDriver, probe
from autovla_rt.export.targets import TARGETS, target_of

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module")
def driver():
    found = probe()
    if isinstance(found, NoDriver):
        pytest.skip(found.reason)
    return found


def test_the_first_gpu_has_a_name_an_sm_and_memory(driver):
    gpu = driver.devices[0]
    assert gpu.name
    assert 70 <= gpu.sm <= 130
    assert 1 << 30 < gpu.memory < 1 << 40
    assert int(driver.cuda.partition(".")[0]) >= 11


def test_nvidia_smi_says_the_same(driver):
    tool = shutil.which("nvidia-smi")
    if tool is None:
        pytest.skip("there is no nvidia-smi here")
    query = "--query-gpu=name,compute_cap,memory.total"
    words = [tool, query, "--format=csv,noheader,nounits"]
    lines = subprocess.run(words, capture_output=True, text=True, check=True).stdout.splitlines()
    told = {}
    for line in lines:
        name, capability, mebibytes = (cell.strip() for cell in line.split(","))
        told[name] = (round(10 * float(capability)), int(mebibytes))
    for gpu in driver.devices:
        sm, mebibytes = told[gpu.name]
        assert gpu.sm == sm
        assert gpu.memory >> 20 == pytest.approx(mebibytes, rel=0.05)


def test_its_target_has_its_sm(driver):
    gpu = driver.devices[0]
    name = target_of(gpu.sm, gpu.memory, "")
    if name is None:
        pytest.skip(f"{gpu.name} (SM {gpu.sm}) is no target without its board's name")
    assert TARGETS[name].sm == gpu.sm
