"""Lines that boards really printed (jetson_stats #187, #624, #894; beszel #1631)."""

import pytest

from autovla_rt.runtime.tegrastats import BoardMonitor, power_mode, read_line, summarise

JETPACK_4 = (
    "RAM 1689/3825MB (lfb 339x4MB) SWAP 0/1913MB (cached 0MB) CPU [3%@345,off,off,0%@345,1%@345,"
    "1%@345] EMC_FREQ 0% GR3D_FREQ 0% PLL@50.5C MCPU@50.5C PMIC@50C GPU@50C BCPU@50.5C"
)
JETPACK_4_POWER = (
    "RAM 3276/7859MB (lfb 5x4MB) CPU [44%@1421,49%@2031] EMC_FREQ 1%@1866 GR3D_FREQ 0%@114 APE 150 "
    "GPU@39.5C thermal@41.3C VDD_SYS_GPU 182/182 VDD_4V0_WIFI 0/0 VDD_IN 5297/5200"
)
JETPACK_6 = (
    "05-15-2025 18:30:28 RAM 6982/7620MB (lfb 5x1MB) SWAP 2640/16384MB (cached 202MB) CPU "
    "[97%@1984,95%@1984,95%@1984,91%@1984,88%@1984,93%@247] EMC_FREQ 18%@3199 GR3D_FREQ 84%@[713] "
    "NVENC 1%@115 NVDEC 40%@115 NVJPG off VIC 31%@115 OFA off APE 174 cv0@63.031C cpu@65.562C "
    "gpu@63.5C tj@65.562C VDD_IN 17946mW/15710mW VDD_CPU_GPU_CV 8896mW/7585mW VDD_SOC 3923mW/3515mW"
)
JETPACK_7 = (
    "07-25-2026 09:08:28 RAM 20642/62817MB (lfb 1x2MB) CPU [23%@2201,10%@2201] EMC_FREQ 3%@3199 "
    "GR3D_FREQ 12%@[1300,1300] NVENC0 off APE 174 cpu@52.968C/52.968C "
    "VDD_GPU_SOC 5139mW/5139mW/5139mW"
)
THOR = "RAM 20642/125817MB CPU [23%@2201] EMC_FREQ @4266 GR3D_FREQ @[1000,1000,1000]"


@pytest.mark.parametrize(
    ("line", "values", "celsius", "milliwatts"),
    [
        (JETPACK_4, {"gpu_percent": 0, "cpu_mhz": 345, "cpu_percent": 1.25}, {"GPU": 50}, {}),
        (
            JETPACK_4_POWER,
            {"gpu_mhz": 114, "emc_mhz": 1866, "cpu_mhz": 2031},
            {"thermal": 41.3},
            {"VDD_SYS_GPU": 182, "VDD_4V0_WIFI": 0, "VDD_IN": 5297},
        ),
        (
            JETPACK_6,
            {"ram_mb": 6982, "gpu_percent": 84, "gpu_mhz": 713, "emc_mhz": 3199},
            {"tj": 65.562, "gpu": 63.5},
            {"VDD_IN": 17946, "VDD_CPU_GPU_CV": 8896, "VDD_SOC": 3923},
        ),
        (
            JETPACK_7,
            {"gpu_percent": 12, "gpu_mhz": 1300, "cpu_percent": 16.5},
            {"cpu": 52.968},
            {"VDD_GPU_SOC": 5139},
        ),
        (THOR, {"gpu_mhz": 1000, "emc_mhz": 4266}, {}, {}),
    ],
)
def test_every_jetpacks_line_is_read(line, values, celsius, milliwatts):
    sample = read_line(line)
    assert values.items() <= sample.values.items()
    assert celsius.items() <= sample.celsius.items()
    assert sample.milliwatts == milliwatts


def test_what_is_not_printed_is_missing():
    assert "gpu_mhz" not in read_line(JETPACK_4).values
    assert "gpu_percent" not in read_line(THOR).values


@pytest.mark.parametrize("line", ["", "tegrastats: permission denied", "CPU [1%@2]"])
def test_another_line_is_refused(line):
    with pytest.raises(ValueError, match="expected a line of tegrastats"):
        read_line(line)


def test_a_summary_has_least_mean_and_greatest():
    samples = [read_line(JETPACK_6), read_line(JETPACK_6.replace("84%@[713]", "20%@[300]"))]
    report = summarise([*samples, read_line(JETPACK_4)])
    assert report["values"]["gpu_percent"] == (0, pytest.approx(104 / 3), 84)
    assert report["values"]["gpu_mhz"] == (300, 506.5, 713)
    assert report["milliwatts"]["VDD_IN"] == (17946, 17946, 17946)


@pytest.fixture
def board(tmp_path, monkeypatch):
    """A machine whose tegrastats and nvpmodel say what they are told."""

    def install(tegrastats, nvpmodel):
        for name, script in {"tegrastats": tegrastats, "nvpmodel": nvpmodel}.items():
            path = tmp_path / name
            path.write_text(f"#!/bin/sh\n{script}\n")
            path.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")

    return install


def monitored(seconds=0.3):
    import time

    with BoardMonitor() as monitor:
        time.sleep(seconds)
    return monitor.report


def test_a_board_is_watched_while_the_body_runs(board):
    board(
        f"[ $1 = --interval ] || exit 1\nwhile :; do echo '{JETPACK_7}'; sleep 0.05; done",
        "echo 'NV Power Mode: MAXN'; echo 0",
    )
    report = monitored()
    assert report["samples"] >= 2
    assert report["power_mode"] == "NV Power Mode: MAXN, 0"
    assert report["milliwatts"] == {"VDD_GPU_SOC": (5139, 5139, 5139)}


def test_a_tool_that_cannot_be_read_loses_nothing_else(board):
    board("echo permission denied; exit 1", "echo no >&2; exit 1")
    assert "permission denied" in monitored()["error"]
    board("sleep 9", "exit 0")
    assert "printed nothing" in monitored(0.0)["error"]
    board("exit 0", "echo 'NVPM ERROR: no access' >&2; exit 1")
    assert power_mode() == "unknown: NVPM ERROR: no access (try sudo)"


def test_another_machine_has_no_report(monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert monitored(0.0) is None
    assert power_mode() == "unknown: nvpmodel is not installed"
