"""Combinations of precisions: how they are written, predicted, compared and ranked."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autovla_rt.errors import InputError
from autovla_rt.export.formats import read_choice
from autovla_rt.export.targets import TARGETS
from autovla_rt.precision_search import (
    PARTS,
    Candidate,
    Figures,
    Wish,
    alone,
    choices,
    finest,
    pareto,
    predict,
    ranked,
    read_wish,
    spell,
)

MODULES = {
    "vision": "visual.blocks.3.mlp.gate_proj",
    "vision_ends": "visual.merger.mlp.0",
    "attention": "model.layers.2.self_attn.q_proj",
    "mlp": "model.layers.2.mlp.down_proj",
    "text_head": "text_head",
}
CPU = TARGETS["cpu"]
OPTIONS = choices(CPU.precisions, CPU.kv, calibrated=True)
combinations = st.fixed_dictionaries({part: st.sampled_from(of) for part, of in OPTIONS.items()})
figures = st.builds(Figures, *(st.integers(0, 6).map(float) for _ in range(3)))


@given(combinations)
def test_what_is_written_is_what_every_part_gets(parts):
    choice = read_choice(spell(parts))
    assert {part: choice.of(module, 8) for part, module in MODULES.items()} | {
        "kv": choice.kv
    } == dict(parts)


def test_a_uniform_combination_is_written_short():
    assert spell({**dict.fromkeys(PARTS, "int8"), "kv": "auto"}) == "int8/int8"


@pytest.mark.parametrize("target", ["cpu", "x86"])
@pytest.mark.parametrize("calibrated", [True, False])
def test_choices_are_legal_on_the_target(target, calibrated):
    of = TARGETS[target]
    options = choices(of.precisions, of.kv, calibrated=calibrated)
    assert set(options["kv"]) <= set(of.kv)
    assert {name for part in PARTS[:-1] for name in options[part]} <= set(of.precisions)
    needs = [read_choice(spell(parts)).is_calibrated for _, _, parts in alone(options)]
    assert calibrated or not any(needs)
    assert "int4" not in "".join(options["vision"])


def test_each_part_alone_differs_from_the_finest_in_that_part():
    for part, name, parts in alone(OPTIONS):
        changed = {key for key in PARTS if parts[key] != finest(OPTIONS)[key]}
        assert (changed, parts[part]) == ({part}, name)


@given(st.dictionaries(st.sampled_from([(p, n) for p, n, _ in alone(OPTIONS)]), figures))
def test_a_prediction_is_the_base_and_what_each_part_changes(measured):
    base = Figures(0.0, 100.0, 500.0)
    candidates = predict(OPTIONS, base, measured)
    assert len(candidates) == 3 * 3 * 4 * 4 * 4 * 2
    for candidate in candidates[:: len(candidates) // 20]:
        expected = list(base)
        for pair in candidate.parts.items():
            if pair in measured:
                expected = [
                    e + m - b for e, m, b in zip(expected, measured[pair], base, strict=True)
                ]
        assert list(candidate.figures) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("wish", "counts"),
    [
        (Wish(), (0, 1)),
        (Wish(latency=1.0), (0, 1)),
        (Wish(memory=1.0), (0, 2)),
        (Wish(1.0, 1.0), (0, 1, 2)),
    ],
)
@given(table=st.lists(figures, min_size=1, max_size=30))
def test_the_front_is_what_nothing_beats_in_what_counts(table, wish, counts):
    candidates = [Candidate({"vision": str(i)}, of) for i, of in enumerate(table)]
    front = pareto(candidates, wish)

    def beats(a, b):
        pairs = [(a[index], b[index]) for index in counts]
        return all(x <= y for x, y in pairs) and any(x < y for x, y in pairs)

    for candidate in candidates:
        beaten = any(beats(other, candidate.figures) for other in table)
        assert (candidate in front) != beaten
    assert [of.figures.ms for of in front] == sorted(of.figures.ms for of in front)


def test_with_a_wish_the_closest_comes_first_and_without_the_fastest():
    slow = Candidate({"vision": "a"}, Figures(0.0, 90.0, 400.0))
    middle = Candidate({"vision": "b"}, Figures(0.1, 60.0, 300.0))
    fast = Candidate({"vision": "c"}, Figures(0.4, 40.0, 200.0))
    every = [fast, slow, middle]
    assert ranked(every, Wish(), 1.0) == [fast, middle, slow]
    assert ranked(every, Wish(), 0.4) == [middle, slow]
    assert ranked(every, Wish(latency=60), 1.0) == [middle, fast]
    assert ranked(every, Wish(memory=250), 1.0) == [fast]
    assert ranked(every, Wish(latency=50, memory=100), 1.0) == []


def test_a_wish_is_read():
    assert read_wish("latency=120, memory=900.5") == Wish(120.0, 900.5)
    assert read_wish("memory=1") == Wish(memory=1.0)
    assert read_wish(None) == Wish()


@pytest.mark.parametrize(
    "text", ["", "latency", "latency=fast", "speed=3", "latency=0", "latency=-1", "memory=nan"]
)
def test_no_wish(text):
    with pytest.raises(InputError, match=r"--fit .*: expected latency=MILLISECONDS,memory=MIB"):
        read_wish(text)
