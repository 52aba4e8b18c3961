"""ONNX Runtime writes and sends nothing of its own."""

import os
import subprocess
import sys

import pytest

CODE = """
import os
import autovla_rt.runtime.backends.ort
assert ("CI" in os.environ) == {ci}, os.environ
"""


def files_left(cache, code, **variables):
    """Run code where nothing else says that this is CI; return what it left in the cache."""
    cache.mkdir(exist_ok=True)
    env = {"PATH": os.environ["PATH"], "XDG_CACHE_HOME": str(cache), **variables}
    subprocess.run([sys.executable, "-c", code], env=env, check=True)
    return [path for path in cache.rglob("*") if path.is_file()]


@pytest.mark.parametrize("variables", [{}, {"CI": "true"}, {"ORT_TELEMETRY_DISABLED": "1"}])
def test_nothing_is_left_in_the_cache(tmp_path, variables):
    code = CODE.format(ci="CI" in variables)
    assert files_left(tmp_path / "cache", code, **variables) == []


def test_who_asks_for_telemetry_gets_it(tmp_path):
    if not files_left(tmp_path / "plain", "import onnxruntime"):
        pytest.skip("this ONNX Runtime has no telemetry: autovla_rt/onnx_runtime.py can go")
    code = CODE.format(ci=False)
    assert files_left(tmp_path / "cache", code, ORT_TELEMETRY_DISABLED="0")
