"""What a checkout itself must hold: links, make targets."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[1]


def make(*words):
    return subprocess.run(["make", "-n", *words], cwd=REPO, capture_output=True, text=True)


def test_a_clone_without_links_says_so(tmp_path):
    shutil.copytree(REPO / "autovla_rt", tmp_path / "autovla_rt", symlinks=True)
    for name in ("export", "runtime", "kernels"):
        link = tmp_path / "autovla_rt" / name
        link.unlink()
        link.write_text(f"../{name}")  # what git leaves with core.symlinks=false
    # -S: no site-packages hooks, which would find the editable install's folders.
    code = "import sys; sys.path[:0] = sys.argv[1:3]; sys.argv[1:] = ['plan', '--frames', 'x'];"
    code += "from autovla_rt.cli import main; main()"
    site = next(path for path in sys.path if path.endswith("site-packages"))
    done = subprocess.run(
        [sys.executable, "-S", "-c", code, str(tmp_path), site],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": ""},
    )
    assert done.returncode == 11, done.stderr
    assert "core.symlinks true" in done.stderr


def test_help_is_the_default_and_lists_the_targets():
    done = subprocess.run(["make"], cwd=REPO, capture_output=True, text=True)
    for target in ("help", "setup", "demo", "engine", "test", "lint", "bench", "clean"):
        assert f"\n{target} " in f"\n{done.stdout}"


@pytest.mark.parametrize("checkpoint", ["/data/mine.ckpt", "/data/mine", "/data/mine/"])
def test_an_engine_of_ones_own_does_not_replace_the_demo(checkpoint):
    done = make("engine", f"CHECKPOINT={checkpoint}", "CONFIG=c.yaml", "PRECISION=int4")
    assert "--precision int4" in done.stdout
    assert '--out "engines/mine"' in done.stdout
    assert "engines/demo" not in done.stdout


def test_a_checkpoint_without_its_config_is_refused():
    done = make("engine", "CHECKPOINT=/data/mine")
    assert done.returncode != 0
    assert "CHECKPOINT needs CONFIG=" in done.stderr
