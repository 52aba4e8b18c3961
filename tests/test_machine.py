import os
import subprocess
import sys

import pytest

from autovla_rt import machine
from autovla_rt.machine import (
    cpu_features,
    free_memory,
    peak_memory,
    this_machine,
    usable_cores,
)

ZEN4 = "processor\t: 0\nflags\t\t: fpu avx2 avx512f avx512_bf16 avx512_vnni\n"
HASWELL = "flags\t\t: fpu sse4_2 avx2\n"
ORIN = "Features\t: fp asimd asimddp asimdhp\n"


@pytest.mark.parametrize(
    ("cpuinfo", "features"),
    [
        (ZEN4, ("AVX2", "AVX-512", "VNNI", "BF16")),
        (HASWELL, ("AVX2",)),
        (ORIN, ("dot product",)),
        ("model name : avx2 in a name\n", ()),
        ("", ()),
    ],
)
def test_features_are_read_from_the_flags_alone(cpuinfo, features):
    assert cpu_features(cpuinfo) == features


@pytest.fixture
def files(tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(machine, "CGROUP", tmp_path)
    (tmp_path / "meminfo").write_text("MemTotal:  100 kB\nMemAvailable:    64 kB\n")
    return tmp_path


def test_free_memory_is_what_the_control_group_leaves(files):
    assert free_memory() == 64 * 1024
    (files / "memory.max").write_text("max\n")
    (files / "memory.current").write_text("1000\n")
    assert free_memory() == 64 * 1024
    (files / "memory.max").write_text("41000\n")
    assert free_memory() == 40000
    (files / "memory.current").write_text("50000\n")
    assert free_memory() == 0
    (files / "meminfo").unlink()
    assert free_memory() is None


def test_cores_are_those_of_the_process():
    allowed = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(allowed)})
        assert usable_cores() == this_machine().cores == 1
    finally:
        os.sched_setaffinity(0, allowed)
    assert usable_cores() == len(allowed)


def test_the_peak_is_of_this_process_and_not_of_the_one_that_started_it():
    held = bytearray(600 << 20)
    told = subprocess.check_output(
        [sys.executable, "-c", "from autovla_rt.machine import peak_memory; print(peak_memory())"]
    )
    assert len(held) < peak_memory()
    assert 5 << 20 < int(told) < 300 << 20
