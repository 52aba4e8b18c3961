"""A Jetson as its own files and tools describe it: board, L4T, JetPack, power mode and clocks.

Not run on a board here; the forms that are read are those of Orin with JetPack 6 and 7.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from autovla_rt.runtime.device import device_name
from autovla_rt.runtime.tegrastats import power_mode

RELEASE = Path("/etc/nv_tegra_release")

FASTEST_MODE = "MAXN"
"""Begins the names of the modes without a limit of power: MAXN, MAXN_SUPER."""

_L4T = re.compile(r"# R(\d+) \(release\), REVISION: ([\d.]+)")
_GPU_CLOCKS = re.compile(r"^gpu\S* MinFreq=(\d+) MaxFreq=(\d+)", re.IGNORECASE | re.MULTILINE)


@dataclass(frozen=True)
class Board:
    """A Jetson.

    Attributes:
        name: Of the board.
        l4t: Release of Jetson Linux, as 39.2.1; "unknown" where the file has another form.
        jetpack: Version of JetPack's libraries; None where they are not installed.
        power_mode: What `nvpmodel -q` says.
        clocks: Whether the GPU's clock is fixed, and at what.
    """

    name: str
    l4t: str
    jetpack: str | None
    power_mode: str
    clocks: str

    @property
    def fixes(self) -> tuple[str, ...]:
        """Commands that make it a board that engines run and are measured on."""
        wanted = {
            "sudo apt install nvidia-jetpack": self.jetpack is None,
            "sudo nvpmodel -p --verbose, then sudo nvpmodel -m ID of MAXN or MAXN_SUPER": (
                FASTEST_MODE not in self.power_mode
            ),
            "sudo jetson_clocks": not self.clocks.startswith("fixed"),
        }
        return tuple(command for command, is_wanted in wanted.items() if is_wanted)


def this_board() -> Board | None:
    """Look at this machine; None where it is no Jetson."""
    if not RELEASE.exists():
        return None
    l4t = l4t_release(RELEASE.read_text(errors="replace"))
    return Board(device_name(), l4t, installed_jetpack(), power_mode(), gpu_clocks())


def l4t_release(text: str) -> str:
    """Return the release in the text of /etc/nv_tegra_release."""
    found = _L4T.match(text)
    return f"{found[1]}.{found[2]}" if found else "unknown"


def installed_jetpack() -> str | None:
    """Return the version of the package nvidia-jetpack, None where it is not installed."""
    tool = shutil.which("dpkg-query")
    if tool is None:
        return None
    words = [tool, "-W", "-f", "${db:Status-Status} ${Version}", "nvidia-jetpack"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    status, _, version = done.stdout.strip().partition(" ")
    return version if status == "installed" else None


def gpu_clocks() -> str:
    """Say whether `jetson_clocks` has fixed the GPU's clock, or why that is not known."""
    tool = shutil.which("jetson_clocks")
    if tool is None:
        return "unknown: jetson_clocks is not installed"
    done = subprocess.run([tool, "--show"], capture_output=True, text=True, check=False)
    found = _GPU_CLOCKS.search(done.stdout)
    if found is None:
        said = (done.stderr or done.stdout).strip().splitlines()
        return f"unknown: {said[0] if said else 'jetson_clocks says nothing'} (try sudo)"
    least, most = (int(hertz) // 1_000_000 for hertz in found.groups())
    return f"fixed at {most} MHz" if least == most else f"{least} to {most} MHz, not fixed"
