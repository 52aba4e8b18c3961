"""What boards' files and tools print, and what is read of it."""

import pytest

from autovla_rt.runtime import device, jetson
from autovla_rt.runtime.jetson import gpu_clocks, installed_jetpack, l4t_release, this_board

RELEASE_7 = (
    "# R39 (release), REVISION: 2.1, GCID: 46758480, BOARD: generic, EABI: aarch64\n"
    "# KERNEL_VARIANT: oot\nTARGET_USERSPACE_LIB_DIR=nvidia\n"
)
RELEASE_6 = "# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic, EABI: aarch64\n"
CLOCKS = (
    "SOC family:tegra234  Machine:NVIDIA Jetson AGX Orin Developer Kit\n"
    "cpu0:  Online=1 Governor=schedutil MinFreq=729600 MaxFreq=2201600 CurrentFreq=2188800\n"
    "GPU MinFreq={least} MaxFreq=1300500000 CurrentFreq=306000000\n"
    "EMC MinFreq=204000000 MaxFreq=3199000000 CurrentFreq=2133000000 FreqOverride=0\n"
)


@pytest.mark.parametrize(
    ("text", "release"),
    [(RELEASE_7, "39.2.1"), (RELEASE_6, "36.4.3"), ("", "unknown"), ("R39", "unknown")],
)
def test_the_release_of_jetson_linux(text, release):
    assert l4t_release(text) == release


@pytest.fixture
def tools(tmp_path, monkeypatch):
    """Install programs that print what they are told, and no others."""

    def install(**scripts):
        for name, script in scripts.items():
            path = tmp_path / name.replace("_query", "-query")
            path.write_text(f"#!/bin/sh\n{script}\n")
            path.chmod(0o755)
        monkeypatch.setenv("PATH", str(tmp_path))

    return install


@pytest.mark.parametrize(
    ("script", "version"),
    [
        ("echo 'installed 7.2-b183'", "7.2-b183"),
        ("echo 'not-installed '", None),
        ("echo 'config-files 6.2'", None),
        ("echo 'no packages found matching nvidia-jetpack' >&2; exit 1", None),
    ],
)
def test_jetpack_is_there_where_its_package_is_installed(tools, script, version):
    tools(dpkg_query=script)
    assert installed_jetpack() == version


def test_without_dpkg_there_is_no_jetpack(tools):
    tools()
    assert installed_jetpack() is None


def test_clocks_are_fixed_where_the_least_is_the_most(tools):
    tools(jetson_clocks=f"echo '{CLOCKS.format(least=1300500000)}'")
    assert gpu_clocks() == "fixed at 1300 MHz"
    tools(jetson_clocks=f"echo '{CLOCKS.format(least=306000000)}'")
    assert gpu_clocks() == "306 to 1300 MHz, not fixed"


def test_clocks_that_are_not_told_say_why(tools):
    tools()
    assert gpu_clocks() == "unknown: jetson_clocks is not installed"
    tools(jetson_clocks="echo 'Error: needs root' >&2; exit 1")
    assert gpu_clocks() == "unknown: Error: needs root (try sudo)"
    tools(jetson_clocks="exit 0")
    assert gpu_clocks() == "unknown: jetson_clocks says nothing (try sudo)"


@pytest.fixture
def orin(tmp_path, monkeypatch):
    release, model = tmp_path / "nv_tegra_release", tmp_path / "model"
    release.write_text(RELEASE_7)
    model.write_bytes(b"NVIDIA Jetson AGX Orin Developer Kit\0")
    monkeypatch.setattr(jetson, "RELEASE", release)
    monkeypatch.setattr(device, "BOARD", model)


def test_a_board_in_order_needs_nothing(tools, orin):
    tools(
        dpkg_query="echo 'installed 7.2.1'",
        nvpmodel="echo 'NV Power Mode: MAXN'; echo 0",
        jetson_clocks=f"echo '{CLOCKS.format(least=1300500000)}'",
    )
    board = this_board()
    assert board.name == "NVIDIA Jetson AGX Orin Developer Kit"
    assert (board.l4t, board.jetpack) == ("39.2.1", "7.2.1")
    assert board.power_mode == "NV Power Mode: MAXN, 0"
    assert board.fixes == ()


def test_what_a_board_lacks_is_told_as_commands(tools, orin):
    tools(
        nvpmodel="echo 'NV Power Mode: 30W'; echo 2",
        jetson_clocks=f"echo '{CLOCKS.format(least=306000000)}'",
    )
    install, mode, clocks = this_board().fixes
    assert install == "sudo apt install nvidia-jetpack"
    assert "sudo nvpmodel -m" in mode
    assert clocks == "sudo jetson_clocks"


def test_another_machine_is_no_board(tmp_path, monkeypatch):
    monkeypatch.setattr(jetson, "RELEASE", tmp_path / "none")
    assert this_board() is None
