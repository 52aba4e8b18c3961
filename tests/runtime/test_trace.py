import time

import pytest

from autovla_rt.runtime.trace import Trace


def test_stages_keep_their_order_and_repeated_spans_add_up():
    trace = Trace()
    for name in ("prefill", "actions", "prefill"):
        with trace.span(name):
            time.sleep(0.01)
    stages = trace.stages_ms()
    assert list(stages) == ["prefill", "actions"]
    assert 20 <= stages["prefill"] < 200
    assert 10 <= stages["actions"] < stages["prefill"]
    assert trace.counts() == {"prefill": 2, "actions": 1}


def test_nested_spans_each_keep_their_duration_and_a_name_is_not_timed_twice():
    trace = Trace()
    with trace.span("request"), trace.span("reasoning"), trace.span("reasoning"):
        time.sleep(0.02)
    stages = trace.stages_ms()
    assert stages["request"] >= stages["reasoning"] >= 20
    assert stages["reasoning"] < 38
    assert trace.counts()["reasoning"] == 2


def test_a_span_that_raises_is_measured():
    trace = Trace()

    def stage():
        with trace.span("prefill"):
            time.sleep(0.005)
            raise KeyError

    with pytest.raises(KeyError):
        stage()
    assert trace.stages_ms()["prefill"] >= 5
    with trace.span("prefill"):
        time.sleep(0.005)
    assert trace.stages_ms()["prefill"] >= 10
