"""Our use of TensorRT's Python API is that of NVIDIA's real module: names, arguments, types.

TensorRT itself cannot be installed without NVIDIA's index; TensorRT for RTX has the same API as far
as is used. Stubs are made of the module that is installed, and mypy reads our files with them.
"""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import tensorrt_rtx
from demo_engine import REPO

MODULES = {
    "export/emit/tensorrt.py": "autovla_rt.export.emit.tensorrt",
    "runtime/backends/tensorrt.py": "autovla_rt.runtime.backends.tensorrt",
    "runtime/backends/tensorrt_executor.py": "autovla_rt.runtime.backends.tensorrt_executor",
    "autovla_rt/nvidia_trial.py": "autovla_rt.nvidia_trial",
}
CONFIGURATION = "[mypy]\nfollow_imports = silent\nignore_missing_imports = true\n"
TOLD = re.compile(r"^(?!.*tensorrt_rtx/__init__\.pyi).*\[(attr-defined|call-arg|call-overload)\]$")
"""Complaints that count: others come of what signatures of pybind11 do not say (that a tuple passes
for Dims, that Dims can be iterated over)."""


@pytest.fixture(scope="module")
def stubs(tmp_path_factory):
    """Stubs of the installed module, and a configuration to read them with."""
    folder = tmp_path_factory.mktemp("stubs")
    name = "tensorrt_rtx_bindings.tensorrt_rtx"
    command = [Path(sys.executable).with_name("stubgen"), "-q", "--inspect-mode", "-m", name]
    done = subprocess.run([*map(str, command), "-o", str(folder)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (folder / "tensorrt_rtx").mkdir()
    text = (folder / "tensorrt_rtx_bindings" / "tensorrt_rtx.pyi").read_text()
    # Neither does a signature say that plans can be read as bytes; one is no Python at all.
    text = text.replace("class IHostMemory:", "class IHostMemory(bytes):")
    text = re.sub(r"(def add_scale_nd)\(.*", r"\1(self, *args, **kwargs): ...", text)
    text = re.sub(r"(def add_scale)\(.*", r"\1(self, *args, **kwargs): ...", text)
    (folder / "tensorrt_rtx" / "__init__.pyi").write_text(text)
    (folder / "mypy.ini").write_text(CONFIGURATION)
    return folder


def check(stubs, *what):
    environment = {**os.environ, "MYPYPATH": str(stubs)}
    options = ["--config-file", stubs / "mypy.ini", "--cache-dir", stubs / "cache"]
    words = [sys.executable, "-m", "mypy", *map(str, options), *map(str, what)]
    done = subprocess.run(words, capture_output=True, text=True, cwd=REPO, env=environment)
    assert "[syntax]" not in done.stdout, done.stdout
    assert done.returncode in (0, 1), done.stderr
    return [line for line in done.stdout.splitlines() if TOLD.match(line)]


def test_calls_have_the_names_and_arguments_of_the_real_module(stubs):
    assert not check(stubs, *(word for name in MODULES.values() for word in ("-m", name)))


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("execute_async_v3(self._device.stream)", "execute_async_v4(self._device.stream)"),
        ("set_input_shape(name, shape)", "set_input_shape(shape, name)"),
        ("set_device_memory(self._scratch, self._scratch_size)", "set_device_memory()"),
        ("engine.num_io_tensors", "engine.num_bindings"),
    ],
)
def test_a_wrong_call_would_be_found(stubs, tmp_path, right, wrong):
    source = (REPO / "runtime/backends/tensorrt_executor.py").read_text()
    assert right in source
    path = tmp_path / "wrong.py"
    path.write_text(source.replace(right, wrong))
    assert check(stubs, path)


def chains(path):
    """Attributes of the module parameter, `trt` or `self._trt`, as dotted names."""
    for node in ast.walk(ast.parse((REPO / path).read_text())):
        parts = []
        while isinstance(node, ast.Attribute):
            parts.append(node.attr)
            node = node.value
        if isinstance(node, ast.Name) and node.id == "trt" and parts:
            yield ".".join(reversed(parts))
        elif isinstance(node, ast.Name) and node.id == "self" and parts[-1:] == ["_trt"]:
            yield ".".join(reversed(parts[:-1]))


@pytest.mark.parametrize("path", MODULES)
def test_the_module_has_every_name_that_is_taken_of_it(path):
    names = {name for name in chains(path) if name}
    assert names
    for name in names - {"__name__", "__version__"}:
        found = tensorrt_rtx
        for part in name.split("."):
            found = getattr(found, part)
