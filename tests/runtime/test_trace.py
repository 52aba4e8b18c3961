import time

import pytest

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
