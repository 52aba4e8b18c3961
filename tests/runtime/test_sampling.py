import math

import numpy as np
import pytest
import torch
from hypothesis import assume, example, given
from hypothesis import strategies as st
from transformers import (
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from autovla_rt.errors import BundleError, InputError
from autovla_rt.runtime.sampling import Sampler, Sampling, probabilities

VOCAB = 32


def choose(sampling, logits, candidates=None, history=(), stage="action"):
    logits = np.asarray(logits, np.float32)
    candidates = np.arange(logits.size) if candidates is None else np.asarray(candidates)
    return Sampler(sampling).choose(logits, candidates, history, stage=stage)


def reference(logits, candidates, history, sampling):
    """Probabilities of the candidates by transformers' own processors on masked full logits."""
    scores = torch.full((1, VOCAB), -math.inf)
    scores[0, candidates] = torch.from_numpy(logits)
    ids = torch.tensor([history], dtype=torch.long)
    if sampling.repetition_penalty != 1 and history:
        scores = RepetitionPenaltyLogitsProcessor(sampling.repetition_penalty)(ids, scores)
    scores = TemperatureLogitsWarper(sampling.temperature)(ids, scores)
    if sampling.top_k:
        scores = TopKLogitsWarper(sampling.top_k)(ids, scores)
    before_top_p = scores.softmax(-1)[0, candidates].numpy()
    scores = TopPLogitsWarper(float(sampling.top_p))(ids, scores)
    return before_top_p, scores.softmax(-1)[0, candidates].numpy()


@st.composite
def cases(draw):
    candidates = sorted(draw(st.sets(st.integers(0, VOCAB - 1), min_size=1)))
    size = len(candidates)
    spread = st.floats(-20, 20, width=32, allow_subnormal=False)  # torch flushes them to 0
    ties = st.sampled_from([-1.5, 0.0, 1.5, -math.inf])
    logits = draw(st.lists(draw(st.sampled_from([spread, ties])), min_size=size, max_size=size))
    assume(max(logits) > -math.inf)
    history = draw(st.lists(st.integers(0, VOCAB - 1), max_size=20))
    sampling = Sampling(
        temperature=draw(st.sampled_from([0.2, 0.8, 1.0, 3.0])),
        top_k=draw(st.sampled_from([0, 1, 2, 5, 20, 50])),
        top_p=draw(st.sampled_from([0.0, 0.2, 0.25, 0.5, 0.75, 0.9, 1.0])),
        repetition_penalty=draw(st.sampled_from([1.0, 1.05, 1.5, 0.8])),
    )
    return np.array(logits, np.float32), np.array(candidates), history, sampling


TIES = np.zeros(4, np.float32), np.arange(4), []


@example(case=(*TIES, Sampling(temperature=1.0, top_p=0.5)))
@example(case=(*TIES, Sampling(temperature=1.0, top_p=0.25)))
@example(case=(*TIES, Sampling(temperature=1.0, top_k=2)))
@example(case=(*TIES, Sampling(temperature=1.0, top_p=0.0)))
@example(case=(np.zeros(10, np.float32), np.arange(10), [], Sampling(temperature=1.0, top_p=0.3)))
@given(case=cases())
def test_probabilities_equal_transformers_processors(case):
    logits, candidates, history, sampling = case
    before_top_p, expected = reference(logits, candidates, history, sampling)
    # Off exact ties, a sum on top-p's border falls to either side by float32 rounding alone.
    sums = np.cumsum(np.sort(before_top_p))
    tied = len(set(logits.tolist())) == 1 and not history
    assume(tied or np.abs(sums[:-1] - (1 - sampling.top_p)).min(initial=1) > 1e-6)
    got = probabilities(logits, candidates, history, sampling)
    # Which of several equal candidates survive top-p is the sort's choice: compare the values.
    np.testing.assert_allclose(np.sort(got), np.sort(expected), atol=1e-6)
    survivors = {(v, p > 0) for v, p in zip(logits.tolist(), expected, strict=True)}
    if len(survivors) == len(set(logits.tolist())):
        np.testing.assert_allclose(got, expected, atol=1e-6)


def test_the_mask_comes_first_so_an_illegal_favourite_takes_no_probability():
    sampling = Sampling(temperature=1.0, top_k=1)
    full = np.array([9.0, 1.0, 2.0, 9.0], np.float32)
    legal = np.array([1, 2])
    np.testing.assert_array_equal(probabilities(full[legal], legal, [], sampling), [0, 1])


def test_a_repeated_id_is_penalised_once_by_its_vocabulary_id():
    sampling = Sampling(temperature=1.0, repetition_penalty=2.0)
    ids = np.array([100, 200, 300])
    got = probabilities(np.array([2, 2, -2], np.float32), ids, [200, 200, 300, 7], sampling)
    weights = np.exp([2, 1, -4])
    np.testing.assert_allclose(got, weights / weights.sum(), rtol=1e-12)


def test_drawn_frequencies_follow_the_probabilities():
    sampling = Sampling(temperature=0.7, top_k=5, top_p=0.95, seed=3)
    logits = np.array([1.0, 0.2, -0.3, 2.0, -5.0, 0.9, -1.0, -2.0], np.float32)
    ids = np.arange(logits.size)
    expected = probabilities(logits, ids, [], sampling)
    sampler = Sampler(sampling)
    draws = 6000
    counts = np.bincount(
        [sampler.choose(logits, ids, [], stage="action") for _ in range(draws)], minlength=8
    )
    alive = expected > 0
    assert counts[~alive].sum() == 0
    chi_square = ((counts - draws * expected)[alive] ** 2 / (draws * expected[alive])).sum()
    assert alive.sum() == 4
    assert chi_square < 16.3  # 99.9 % quantile at 3 degrees of freedom


def test_a_seed_repeats_its_draws_and_another_differs():
    ids = np.arange(50)
    logits = np.zeros(50, np.float32)

    def draws(seed):
        sampler = Sampler(Sampling(temperature=1.0, seed=seed))
        return [sampler.choose(logits, ids, [], stage="action") for _ in range(20)]

    assert draws(1) == draws(1) != draws(2)


def test_greedy_takes_the_first_of_equal_candidates():
    assert choose(Sampling(), [-1, 3, 3, 2]) == 1
    assert choose(Sampling(), [-math.inf, -3, -3]) == 1


def test_greedy_penalises_the_history():
    penalised = Sampling(repetition_penalty=1.05)
    assert choose(penalised, [2.0, 1.95], [70, 80], history=[70]) == 1
    assert choose(penalised, [-2.0, -2.05], [70, 80], history=[70]) == 1
    assert choose(penalised, [2.0, 1.95], [70, 80], history=[0, 1]) == 0


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(temperature=0.2, top_k=3, top_p=0.9)])
@pytest.mark.parametrize(
    "logits",
    [[3e38, -3e38, 0], [-3e38, -3.1e38, -3.2e38], [-math.inf, -math.inf, 3e38], [1e-45, 0, -1e-45]],
)
def test_extreme_finite_logits_give_a_choice(sampling, logits):
    with np.errstate(all="raise"):
        assert choose(Sampling(repetition_penalty=1.05), logits, history=[0, 1, 2]) in range(3)
    chosen = choose(sampling, logits)
    assert logits[chosen] > -math.inf


def test_a_tiny_temperature_is_greedy_and_does_not_overflow():
    assert choose(Sampling(temperature=1e-300), [1e38, 3e38, -3e38]) == 1


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(temperature=1.0)])
@pytest.mark.parametrize("logits", [[0, math.nan, 9], [0, math.inf], [-math.inf, -math.inf]])
def test_unusable_logits_are_an_error_that_names_the_stage(sampling, logits):
    with pytest.raises(BundleError, match="logits for the reasoning"):
        choose(sampling, logits, stage="reasoning")


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("temperature", -0.1),
        ("temperature", math.nan),
        ("temperature", math.inf),
        ("top_k", -1),
        ("top_k", 2.5),
        ("top_k", True),
        ("top_p", -0.1),
        ("top_p", 1.01),
        ("top_p", math.nan),
        ("repetition_penalty", 0.0),
        ("repetition_penalty", math.inf),
        ("seed", -1),
        ("seed", 0.5),
    ],
)
def test_nonsense_settings_are_refused_by_name(setting, value):
    with pytest.raises(InputError, match=rf"^{setting} must be"):
        Sampling(**({"temperature": 1.0} | {setting: value}))


@pytest.mark.parametrize("settings", [{"top_k": 20}, {"top_p": 0.2}])
def test_settings_without_effect_are_refused(settings):
    with pytest.raises(InputError, match="temperature above 0"):
        Sampling(**settings)


def test_the_official_settings_are_accepted():
    assert not Sampling(temperature=0.8, top_k=20, top_p=0.2, repetition_penalty=1.05).greedy
    assert Sampling().greedy
