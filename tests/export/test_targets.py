"""The table of targets and what it refuses."""

from __future__ import annotations

import pytest

from autovla_rt.errors import TargetError
from autovla_rt.export.targets import BUILDABLE_BACKENDS, TARGETS, check_buildable, check_target


@pytest.mark.parametrize("precision", ["fp32", "int8", "int4"])
def test_a_cpu_can_be_built_for(precision):
    assert check_target("cpu", precision) is TARGETS["cpu"]


@pytest.mark.parametrize("name", [name for name, target in TARGETS.items() if target.sm == 87])
@pytest.mark.parametrize("precision", ["fp8", "nvfp4", "fp32"])
def test_orin_has_no_fp8_and_the_message_names_what_it_has(name, precision):
    with pytest.raises(TargetError) as caught:
        check_target(name, precision)
    message = str(caught.value)
    assert f"'{precision}' on {name}" in message
    assert "SM 8.7" in message
    assert "expected one of fp16, int8, int8_sq, int8_wo, int4, int4_awq" in message


@pytest.mark.parametrize("name", TARGETS)
def test_precisions_follow_the_compute_capability(name):
    target = TARGETS[name]
    sm = target.sm or 0
    assert ("fp8" in target.precisions) == (sm >= 89)
    assert ("nvfp4" in target.precisions) == (sm >= 100)
    assert {"int8", "int4"} <= set(target.precisions)


@pytest.mark.parametrize("name", TARGETS)
def test_a_legal_target_is_built_or_named_as_unbuildable(name):
    target = TARGETS[name]
    assert check_target(name, "int8") is target
    if target.backend in BUILDABLE_BACKENDS:
        check_buildable(name)
        return
    with pytest.raises(TargetError, match=rf"{name} .* is legal, .*tensorrt.*--target cpu"):
        check_buildable(name)


@pytest.mark.parametrize("name", ["", "CPU", "orin", "moon"])
def test_an_unknown_target_is_answered_with_all_of_them(name):
    with pytest.raises(TargetError) as caught:
        check_target(name, "int8")
    assert all(known in str(caught.value) for known in TARGETS)
