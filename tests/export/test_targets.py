"""The table of targets and what it refuses."""

from __future__ import annotations

import pytest

from autovla_rt.errors import TargetError
from autovla_rt.export.formats import read_choice
from autovla_rt.export.graph.dialect import dialect_name, dialect_of
from autovla_rt.export.settings import Settings
from autovla_rt.export.targets import (
    TARGETS,
    check_target,
    target_of,
)
from autovla_rt.export.unified_settings import check_unified
from autovla_rt.runtime.engines import BACKENDS


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


@pytest.mark.parametrize("name", [name for name in TARGETS if name != "cpu-standard"])
def test_precisions_follow_the_compute_capability(name):
    target = TARGETS[name]
    sm = target.sm or 0
    assert ("fp8" in target.precisions) == (sm >= 89)
    assert ("nvfp4" in target.precisions) == (sm >= 100)
    assert {"int8", "int4"} <= set(target.precisions)


@pytest.mark.parametrize("name", TARGETS)
def test_every_target_has_a_dialect_and_a_backend_that_runs_it(name):
    target = TARGETS[name]
    assert check_target(name, "int8") is target
    assert dialect_of(dialect_name(target.backend)).formats
    assert target.backend in BACKENDS


@pytest.mark.parametrize("name", ["", "CPU", "orin", "moon"])
def test_an_unknown_target_is_answered_with_all_of_them(name):
    with pytest.raises(TargetError) as caught:
        check_target(name, "int8")
    assert all(known in str(caught.value) for known in TARGETS)


@pytest.mark.parametrize("name", [name for name, target in TARGETS.items() if target.sm])
def test_peaks_are_of_formats_that_the_device_has(name):
    target, peaks = TARGETS[name], TARGETS[name].peaks
    assert peaks.fp8 is None or "fp8" in target.precisions
    assert peaks.fp4 is None or "nvfp4" in target.precisions
    assert target.source
    if peaks.fp16 is not None:
        assert 1.9 <= peaks.int8 / peaks.fp16 <= 2.01


def test_the_gpus_share_of_orins_headline_is_what_is_left_without_dla_and_sparsity():
    headline = {"agx-orin-64": 275, "agx-orin-32": 241, "orin-nx-16": 157, "orin-nano-8": 67}
    dla = {"agx-orin-64": 105, "agx-orin-32": 92, "orin-nx-16": 80, "orin-nano-8": 0}
    for name, tops in headline.items():
        assert TARGETS[name].peaks.int8 == pytest.approx((tops - dla[name]) / 2, rel=0.02)


@pytest.mark.parametrize("name", TARGETS)
def test_a_default_recipe_is_legal_in_every_form_that_the_target_takes(name):
    target, precision = TARGETS[name], TARGETS[name].recipe.precision
    dialect = dialect_of(dialect_name(target.backend))
    for part, of in read_choice(precision).named():
        assert check_target(name, of) is target, part
    calibration = None if target.sm is None else "calibration"
    settings = Settings("e", name, precision, calibration=calibration)
    assert settings.parts.language_formats <= {*dialect.formats}
    if target.sm is not None:
        assert check_unified(settings) is target


def test_what_a_cpu_is_built_in_by_default_stays_int8():
    assert TARGETS["cpu"].recipe.precision == TARGETS["x86"].recipe.precision == "int8"


GIB = 2**30
NANO = "NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super"
NX = "NVIDIA Jetson Orin NX Engineering Reference Developer Kit"
AGX = "NVIDIA Jetson AGX Orin Developer Kit"
THOR = "NVIDIA Jetson AGX Thor Developer Kit"


@pytest.mark.parametrize(
    ("sm", "memory", "board", "name"),
    [
        (87, 7620 << 20, NANO, "orin-nano-8"),
        (87, 3.6 * GIB, NANO, None),
        (87, 7.4 * GIB, NX, "orin-nx-8"),
        (87, 15.3 * GIB, NX, "orin-nx-16"),
        (87, 30 * GIB, AGX, "agx-orin-32"),
        (87, 62817 << 20, AGX, "agx-orin-64"),
        (87, 62817 << 20, "", None),
        (110, 125817 << 20, THOR, "agx-thor"),
        (110, 61 * GIB, "NVIDIA DRIVE AGX Thor", "drive-thor"),
        (110, 61 * GIB, THOR, None),
        (86, 24 * GIB, "", "rtx-sm86"),
        (89, 16 * GIB, "", "rtx-sm89"),
        (120, 32 * GIB, "", "rtx-sm120"),
        (90, 79 * GIB, "", "h100"),
        (80, 80 * GIB, "", None),
    ],
)
def test_a_device_is_known_by_sm_board_and_memory(sm, memory, board, name):
    assert target_of(sm, int(memory), board) == name
