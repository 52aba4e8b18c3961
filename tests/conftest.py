"""Shared by all tests: the real Qwen2.5-VL processor files, with AutoVLA's action tokens."""

import lzma
import shutil
from pathlib import Path

import pytest
from compiled_graphs import COMPILED
from demo_engine import InProcess, make_demo, run
from tokenizers import AddedToken, Tokenizer

REPO = Path(__file__).resolve().parents[1]
PROCESSOR = REPO.parent / "shared" / "qwen2.5-vl-processor"

LONGEST = (
    "test_tensorrt_rtx.py",
    "test_transformers.py",
    "test_compile.py",
    "test_cli_evaluate.py",
    "test_tensorrt.py",
    "test_device_engine.py",
    "test_fit.py",
    "test_float16.py",
    "test_standard.py",
    "test_cli_world.py",
    "test_sft.py",
    "test_grpo.py",
    "test_bench_race.py",
)
"""Files that take longest: they begin, so that two workers, a file at a time, end together."""


def pytest_collection_modifyitems(items):
    """Put the longest files first, for pytest -n 2 --dist loadfile --no-loadscope-reorder."""
    place = {name: index for index, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path.name, len(LONGEST)))


def pytest_terminal_summary(terminalreporter):
    """Print what NVIDIA's compiler made of each graph, so that CI's log has it."""
    rows = [
        value
        for report in terminalreporter.stats.get("passed", [])
        for name, value in report.user_properties
        if name == COMPILED
    ]
    if rows:
        terminalreporter.section("TensorRT for RTX: layers, MB of the plan, seconds")
        for row in sorted(rows):
            terminalreporter.write_line(row)


@pytest.fixture(scope="session")
def qwen_processor(tmp_path_factory):
    """A folder with the real tokenizer and processor settings, action tokens at 151665."""
    if not PROCESSOR.is_dir():
        pytest.skip(f"the real tokenizer is not at {PROCESSOR}")
    folder = tmp_path_factory.mktemp("processor")
    for path in PROCESSOR.iterdir():
        shutil.copy(path, folder / path.name)
    packed = folder / "tokenizer.json.xz"
    tokenizer = Tokenizer.from_str(lzma.decompress(packed.read_bytes()).decode())
    packed.unlink()
    tokenizer.add_tokens([AddedToken(f"<action_{i}>", special=False) for i in range(2048)])
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture(scope="session")
def demo(tmp_path_factory):
    """The demo checkpoint and its engine; tests copy what they change."""
    return make_demo(tmp_path_factory.getbasetemp())


@pytest.fixture
def invoke(monkeypatch, capsys):
    """The command line in this process."""
    return InProcess(monkeypatch, capsys)


@pytest.fixture(scope="session")
def calibration(demo, tmp_path_factory):
    """A calibration of the demo checkpoint on eight scenes, by the command line."""
    out = tmp_path_factory.mktemp("calibrated") / "calibration"
    scenes = REPO / "calib_data" / "miniature"
    given = ("--scenes", scenes / "scenes", "--sensor-root", scenes / "sensors", "--count", "8")
    size = ("--frame-size", "392x224")
    done = run("calibrate", *demo.build_options, *given, *size, "--out", out, cache=out.parent)
    assert done.returncode == 0, done.stderr
    return out
