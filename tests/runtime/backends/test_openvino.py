"""OpenVINO beside ONNX Runtime, in one process and one thread of the caller."""

import subprocess
import sys

import pytest
from demo_engine import REPO

pytest.importorskip("openvino")

SCRIPT = """
import sys
from pathlib import Path

from autovla_rt.bundle import load_bundle
from autovla_rt.config import CAMERAS
from autovla_rt.demo.world_engine import model_files
from autovla_rt.export.build import build_engine
from autovla_rt.export.open_model import open_model
from autovla_rt.export.progress import NoProgress
from autovla_rt.export.settings import Settings
from autovla_rt.runtime.engines import open_engines
from autovla_rt.runtime.planner import Planner
from autovla_rt.runtime.scene import read_frames_dir

checkpoint, engine, frames, out = map(Path, sys.argv[1:])
bundle = load_bundle(engine)
planner = Planner(bundle, *open_engines(bundle, None))
request = read_frames_dir(frames)
before = planner.plan(request)
settings = Settings("x", "x86", "int8", frame_sizes=dict.fromkeys(CAMERAS, (392, 224)))
build_engine(open_model(model_files(checkpoint)), settings, out, NoProgress())
assert planner.plan(request).trajectory == before.trajectory
"""


def test_onnx_runtime_plans_on_after_openvino_computed(demo, tmp_path):
    """With AMX it ended the process by an illegal instruction (a thread's tiles are shared)."""
    given = (demo.base.parent, demo.engine, REPO / "calib_data" / "demo", tmp_path / "engine")
    command = [sys.executable, "-c", SCRIPT, *map(str, given)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
