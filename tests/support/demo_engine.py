"""The demo checkpoint and its engine, built once a session, and ways to run the command."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

from autovla_rt import cli

REPO = Path(__file__).resolve().parents[2]
SCRIPT = Path(sys.executable).with_name("autovla-rt")
FRAMES = REPO / "calib_data" / "demo"
RECIPE = REPO / "demo" / "recipe.toml"
CHECKPOINT = REPO / "demo" / "checkpoint"


@dataclass(frozen=True)
class Demo:
    """Where the checkpoint lies. Tests copy what they change."""

    base: Path
    config: Path
    codebook: Path
    engine: Path

    @property
    def build_options(self) -> list[str]:
        options = {"--checkpoint": self.base, "--config": self.config, "--recipe": RECIPE}
        return [str(word) for pair in options.items() for word in pair]


@cache
def make_demo(session: Path) -> Demo:
    """Copy the checkpoint and build its int8 engine below the session's temporary folder."""
    folder = session / "demo-engine"
    shutil.copytree(CHECKPOINT, folder)
    engine = folder / "engine"
    demo = Demo(folder / "base", folder / "config.yaml", folder / "codebook.safetensors", engine)
    done = run("build", *demo.build_options, "--out", engine, "--note", "a note", cache=folder)
    assert done.returncode == 0, done.stderr
    return demo


def copy_checkpoint(demo: Demo, folder: Path) -> Demo:
    """A private copy of the demo's checkpoint, config and codebook."""
    shutil.copytree(demo.base, folder / "base")
    shutil.copy(demo.config, folder)
    shutil.copy(demo.codebook, folder)
    return Demo(
        folder / "base", folder / "config.yaml", folder / "codebook.safetensors", demo.engine
    )


def run(*words: object, cache: Path, **options) -> subprocess.CompletedProcess[str]:
    """Run the installed script; `cache` holds its hashes, the user's own the world's kernels."""
    kernels = Path.home() / ".cache" / "autovla-rt"
    environment = {
        **os.environ,
        "XDG_CACHE_HOME": str(cache),
        "NUMBA_CACHE_DIR": str(kernels),
        **options.pop("env", {}),
    }
    return subprocess.run(
        [SCRIPT, *map(str, words)],
        capture_output=True,
        text=True,
        timeout=120,
        env=environment,
        **options,
    )


class InProcess:
    """`main()` in this process: the same messages and exit codes without the start-up time."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self._monkeypatch = monkeypatch
        self._capsys = capsys

    def __call__(self, *words: object) -> tuple[int, str, str]:
        """Return exit code, stdout and stderr."""
        self._monkeypatch.setattr(sys, "argv", ["autovla-rt", *map(str, words)])
        self._capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main()
        code = ended.value.code
        return (0 if code is None else code, *self._capsys.readouterr())

    def json(self, *words: object) -> dict:
        """Return what a command that succeeds prints as JSON."""
        code, out, err = self(*words)
        assert code == 0, err
        return json.loads(out)

    def refused(self, code: int, *words: object) -> str:
        """Require an exit code, one message and nothing on stdout; return the message."""
        got, out, err = self(*words)
        assert got == code, err
        assert out == ""
        assert "Traceback" not in err
        if code != 2:
            assert err.count("error: ") == 1
        return " ".join(err.replace("│", " ").split())


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
