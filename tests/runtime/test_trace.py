import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from demo_engine import FRAMES

from autovla_rt.runtime import trace as trace_module
from autovla_rt.runtime.trace import Trace


class Clock:
    """A clock that only moves when told, in nanoseconds."""

    now = 10**12

    def advance(self, ms):
        self.now += int(ms * 1e6)


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(trace_module, "perf_counter_ns", lambda: clock.now)
    return clock


def test_stages_keep_their_order_and_repeated_spans_add_up(clock):
    trace = Trace()
    for name, ms in (("prefill", 10), ("actions", 7.5), ("prefill", 30)):
        with trace.span(name):
            clock.advance(ms)
        clock.advance(1000)
    assert list(trace.stages_ms().items()) == [("prefill", 40.0), ("actions", 7.5)]


def test_nested_spans_each_keep_their_duration_and_a_name_is_not_timed_twice(clock):
    trace = Trace()
    with trace.span("request"):
        clock.advance(1)
        with trace.span("reasoning"), trace.span("reasoning"):
            clock.advance(20)
        clock.advance(2)
    assert trace.stages_ms() == {"request": 23.0, "reasoning": 20.0}


def test_a_span_that_raises_is_measured_and_closed(clock):
    trace = Trace()

    def stage(error):
        with trace.span("prefill"):
            clock.advance(5)
            if error:
                raise error

    with pytest.raises(KeyError):
        stage(KeyError())
    assert trace.stages_ms() == {"prefill": 5.0}
    stage(None)
    assert trace.stages_ms() == {"prefill": 10.0}


def test_the_real_clock_counts_milliseconds():
    trace = Trace()
    with trace.span("prefill"):
        time.sleep(0.01)
    assert 10 <= trace.stages_ms()["prefill"] < 5000


PLAN = """
import sys
from pathlib import Path
{load}
from autovla_rt.runtime.planner import Planner
from autovla_rt.runtime.scene import read_frames_dir
Planner.load(sys.argv[1]).plan(read_frames_dir(Path(sys.argv[2])), mode="fast")
"""


@pytest.fixture(scope="module")
def ranges(demo, tmp_path_factory):
    """A function that plans under a tool which NVTX loads; returns what NVTX told it."""
    if shutil.which("cc") is None:
        pytest.skip("no C compiler: the tool that listens to NVTX is built by one")
    tool = tmp_path_factory.mktemp("nvtx") / "listener.so"
    source = Path(__file__).parents[1] / "support" / "nvtx_listener.c"
    subprocess.run(["cc", "-shared", "-fPIC", "-o", tool, source], check=True)

    def plan(load):
        words = [sys.executable, "-c", PLAN.format(load=load), demo.engine, FRAMES]
        environment = {**os.environ, "NVTX_INJECTION64_PATH": str(tool)}
        done = subprocess.run([*map(str, words)], capture_output=True, text=True, env=environment)
        assert done.returncode == 0, done.stderr
        return [line for line in done.stderr.splitlines() if line.startswith("nvtx ")]

    return plan


def test_stages_are_ranges_of_nvtx(ranges):
    told = ranges("import nvtx")
    pushed = [line.partition(" push ")[2] for line in told if " push " in line]
    stages = ["image_decode", "preprocess", "vision", "prompt", "prefill", "actions"]
    assert [name for name in dict.fromkeys(pushed) if name in stages] == stages
    assert all(line.startswith("nvtx autovla-rt ") for line in told)
    depth = 0
    for line in told:
        depth += 1 if " push " in line else -1
        assert depth >= 0
    assert depth == 0


def test_without_nvtx_nothing_is_told(ranges):
    assert ranges("") == []
