"""What an evaluation counts, on numbers whose result is known."""

import math

import numpy as np
import pytest

from autovla_rt.errors import InputError
from autovla_rt.runtime.evaluation.gate import LIMITS, judge, read_limits
from autovla_rt.runtime.evaluation.observation import (
    choice_divergence,
    divergence,
    first_difference,
)
from autovla_rt.runtime.evaluation.scene_record import displacements
from autovla_rt.runtime.evaluation.summary import summarise


def straight(offset):
    """A plan 1 m a step ahead, `offset` metres aside, growing a metre every step."""
    steps = np.arange(1, 11)
    return np.stack([steps, offset + np.zeros(10), np.zeros(10)], axis=1).astype(float)


def test_displacements_are_means_and_ends_up_to_each_horizon():
    plan = straight(0.0)
    plan[:, 1] = np.arange(10)  # 0 m off at 0.5 s, 9 m at 5 s
    found = displacements(plan, straight(0.0), 0.5)
    assert found == pytest.approx(
        {
            "ade_1s": 0.5,
            "fde_1s": 1.0,
            "ade_3s": 2.5,
            "fde_3s": 5.0,
            "ade_5s": 4.5,
            "fde_5s": 9.0,
        }
    )


def test_a_truth_that_ends_early_has_no_later_horizons():
    assert set(displacements(straight(0), straight(1)[:6], 0.5)) == {
        "ade_1s",
        "fde_1s",
        "ade_3s",
        "fde_3s",
    }


def test_divergence_is_zero_for_the_same_and_known_for_two_choices():
    logits = np.array([[1.0, 2.0, 3.0]], np.float32)
    assert divergence(logits, logits + 5) == pytest.approx([0], abs=1e-7)
    even, uneven = np.log([[0.5, 0.5]]), np.log([[0.9, 0.1]])
    expected = 0.5 * math.log(0.5 / 0.9) + 0.5 * math.log(0.5 / 0.1)
    assert divergence(even, uneven) == pytest.approx([expected])
    assert choice_divergence(0.5, 0.9) == pytest.approx(expected)
    assert math.isfinite(choice_divergence(1.0, 0.0))


def test_a_first_difference_may_be_an_end():
    assert first_difference((1, 2, 3), (1, 2, 3)) is None
    assert first_difference((1, 2, 3), (1, 5, 3)) == 1
    assert first_difference((1, 2), (1, 2, 3)) == 2


def line(token, ours, theirs, *, same=True, kl=0.01, reasoning=None):
    record = {
        "token": token,
        "mode": "slow" if reasoning else "fast",
        "p_slow": 0.1,
        "thinking_tokens": 0,
        "forward_passes": 5,
        "truth": {"ade_5s": ours},
        "reference": {"truth": {"ade_5s": theirs}},
        "apart": {"ade_5s": abs(ours - theirs)},
        "same_mode": same,
        "same_plan": ours == theirs,
        "action_kl": [kl, 3 * kl],
        "same_action": [True, same],
        "cosine": {"vision": 0.999, "language": 0.9},
        "decision_kl": 0.0,
    }
    return record | (reasoning or {})


def test_a_summary_is_of_all_scenes_and_paired():
    records = [line("a", 1.1, 1.0), line("b", 2.0, 2.0), line("c", 3.2, 3.0, same=False)]
    found = summarise(records)
    assert found["scenes"] == 3
    assert found["truth"]["ade_5s"]["mean"][0] == pytest.approx(2.1)
    assert found["truth"]["ade_5s"]["worst"] == 3.2
    against = found["against"]
    assert against["increase"]["ade_5s"]["share"][0] == pytest.approx(0.05)
    assert against["increase"]["ade_5s"]["metres"][0] == pytest.approx(0.1)
    low, high = against["increase"]["ade_5s"]["share"][1:]
    assert 0 <= low < 0.05 < high
    assert against["same_mode"][0] == pytest.approx(2 / 3, abs=1e-4)
    assert against["same_action_by_step"] == pytest.approx([1, 2 / 3], abs=1e-4)
    assert against["action_kl_by_step"] == pytest.approx([0.01, 0.03])
    assert against["cosine"]["vision"] == {"mean": 0.999, "worst": 0.999}


def test_reasoning_is_compared_where_both_reason():
    alike = {"reasoning_tokens": 20, "reasoning_differs_at": None}
    halfway = {"reasoning_tokens": 20, "reasoning_differs_at": 10}
    records = [line("a", 1, 1), line("b", 1, 1, reasoning=alike)]
    records.append(line("c", 1, 1, reasoning=halfway))
    found = summarise(records)["against"]["reasoning"]
    assert found["scenes"] == 2
    assert (found["same"][0], found["same_until_share"][0]) == (0.5, 0.75)


def test_without_truth_or_reference_their_figures_are_missing():
    record = {"token": "a", "mode": "fast", "thinking_tokens": 0}
    found = summarise([record])
    assert found == {"scenes": 1, "slow_share": 0.0, "thinking_tokens": 0.0}


def test_the_gate_holds_each_limit_on_its_own_side():
    summary = summarise([line("a", 1.03, 1.0), line("b", 2.0, 2.0)])
    limits = read_limits("language_cosine=0.8,scenes=2")
    checks = {check.name: check for check in judge(summary, limits)}
    assert list(checks) == list(LIMITS)
    assert all(check.passed for check in checks.values())
    for name, tight in {
        "scenes": 3,
        "ade_increase": 0.009,
        "apart": 0.014,
        "action_kl": 0.019,
        "vision_cosine": 0.9995,
        "language_cosine": 0.95,
    }.items():
        broken = [c.name for c in judge(summary, {**limits, name: tight}) if not c.passed]
        assert broken == [name]
    summary = summarise([line("a", 1, 1), line("b", 1, 1, same=False)])
    broken = [check.name for check in judge(summary, limits) if not check.passed]
    assert broken == ["mode_agreement"]


def test_a_figure_that_scenes_do_not_have_does_not_count():
    records = [line("a", 1, 1)]
    for record in records:
        del record["truth"]
    (check,) = (c for c in judge(summarise(records), read_limits(None)) if c.name == "ade_increase")
    assert check.measured is None
    assert check.passed


@pytest.mark.parametrize("text", ["ade=1", "ade_increase", "ade_increase=much", "=1"])
def test_limits_that_are_none_are_refused(text):
    with pytest.raises(InputError, match="with one of the names scenes, ade_increase"):
        read_limits(text)


def test_limits_replace_the_defaults():
    limits = read_limits(" ade_increase = 0.02 , mode_agreement=0.9,")
    assert (limits["ade_increase"], limits["mode_agreement"]) == (0.02, 0.9)
    assert limits["apart"] == LIMITS["apart"].value
