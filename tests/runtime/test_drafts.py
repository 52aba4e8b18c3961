"""Drafts save passes and change nothing else."""

import dataclasses
import hashlib
from functools import cache, partial

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from autovla_rt.kernels.contour import pose_to_corners
from autovla_rt.runtime.actions import Codebook
from autovla_rt.runtime.decode import _settled, decode
from autovla_rt.runtime.draft import NO_DRAFT, Draft, Refinement, continuation, corrected
from autovla_rt.runtime.sampling import Sampler, Sampling
from autovla_rt.runtime.tape import Guess
from autovla_rt.runtime.trace import Trace

START, VOCAB = 151665, 151665 + 2048
PROMPT = np.array([151644, 872, 198, 151656, 151656, 100, 151645, 198], np.int64)

_rng = np.random.default_rng(4)
_steps = _rng.normal([4, 0, 0], [2, 0.2, 0.1], (2048, 3))
CODEBOOK = Codebook(pose_to_corners(_steps).astype(np.float32))
SAMPLINGS = (Sampling(), Sampling(1.0, seed=3), Sampling(repetition_penalty=1.3))

quick = settings(max_examples=60, suppress_health_check=list(HealthCheck), deadline=None)


def babble(seed, words):
    """A model that writes now this of a few tokens, now that, by all that came before."""

    def rule(history):
        digest = hashlib.sha256(repr((seed, history)).encode()).digest()
        rng = np.random.default_rng(list(digest))
        logits = np.zeros(VOCAB, np.float32)
        logits[words] = rng.normal(0, 3, len(words))
        logits[START : START + 6] = rng.normal(4, 2, 6)
        return logits

    return rule


def run(engine, grammar, draft, **options):
    options = {"mode": "auto", "thinking_token_budget": 12, "sampling": Sampling()} | options
    options |= {"sampler": Sampler(options.pop("sampling")), "trace": Trace(), "draft": draft}
    return decode(engine, grammar, PROMPT, engine.embed(PROMPT), **options)


def said(decoded):
    """What an answer says, without what it cost."""
    return dataclasses.replace(decoded, forward_passes=0, guesses=())


@quick
@given(data=st.data())
def test_an_answer_is_the_same_with_every_draft(fake_engine, cot_grammar, data):
    seed = data.draw(st.integers(0, 1000))
    rule = babble(seed, [100, 101, 198, 624, 522, 1339, *_choice(cot_grammar)])
    mode = data.draw(st.sampled_from(["auto", "fast", "slow"]))
    sampling = data.draw(st.sampled_from(SAMPLINGS))
    needed = max(cot_grammar.positions(m) for m in ("fast", "slow"))
    capacity = len(PROMPT) + needed + data.draw(st.integers(0, 20))
    options = {"mode": mode, "sampling": sampling}
    plain = run(fake_engine(rule, capacity), cot_grammar, NO_DRAFT, **options)
    other = run(fake_engine(babble(seed + 1, [100, 101, 198]), 4096), cot_grammar, NO_DRAFT)
    near = [
        action if data.draw(st.integers(0, 3)) else data.draw(st.integers(0, 2047))
        for action in plain.action_indices
    ]
    draft = Draft(
        actions=tuple(near[: data.draw(st.integers(0, 14))]),
        answer=data.draw(st.sampled_from([(), plain.output_ids, other.output_ids])),
        mode=data.draw(st.sampled_from(["fast", "slow"])),
        in_prefill=data.draw(st.booleans()),
        reasoning_ahead=data.draw(st.integers(0, 40)),
        actions_ahead=data.draw(st.integers(0, 12)),
    )
    options["codebook"] = data.draw(st.sampled_from([None, CODEBOOK]))
    engine = fake_engine(rule, capacity)
    drafted = run(engine, cot_grammar, draft, **options)
    assert said(drafted) == said(plain)
    assert drafted.forward_passes <= plain.forward_passes
    assert 0 <= drafted.accepted <= drafted.drafted
    assert engine.length <= capacity


def _choice(grammar):
    return [grammar.choice.fast_id, grammar.choice.slow_id]


@pytest.fixture
def fast_rule(cot_grammar):
    babbling = babble(5, [])

    def rule(history):
        logits = babbling(history)
        logits[cot_grammar.choice.fast_id] = 20
        return logits

    return rule


def test_a_right_draft_in_the_prefill_leaves_no_other_pass(fake_engine, cot_grammar, fast_rule):
    plain = run(fake_engine(fast_rule), cot_grammar, NO_DRAFT)
    assert (plain.mode, plain.forward_passes) == ("fast", 11)
    engine = fake_engine(fast_rule)
    drafted = run(engine, cot_grammar, Draft(actions=plain.action_indices))
    scaffold = 1 + len(cot_grammar.branches["fast"][0].ids)
    assert drafted.forward_passes == 1
    assert drafted.drafted == drafted.accepted == scaffold + 9
    behind = run(fake_engine(fast_rule), cot_grammar, Draft(plain.action_indices, in_prefill=False))
    assert behind.forward_passes == 2
    assert behind.drafted == behind.accepted == 9


def test_guesses_are_noted_by_place(fake_engine, cot_grammar, fast_rule):
    plain = run(fake_engine(fast_rule), cot_grammar, NO_DRAFT)
    assert plain.guesses == ()
    likely = list(plain.action_indices)
    likely[4] = (likely[4] + 1) % 2048
    opening = len(cot_grammar.opening)
    scaffold = 1 + len(cot_grammar.branches["fast"][0].ids)
    assert plain.first_action == opening + scaffold
    drafted = run(fake_engine(fast_rule), cot_grammar, Draft(tuple(likely)))
    assert drafted.guesses[0] == Guess(opening, scaffold + 9, scaffold + 4)
    assert drafted.guesses[1].start == plain.first_action + 5
    assert drafted.guesses[1].count == 4


@pytest.mark.parametrize("ahead", [0, 1, 3, 20])
def test_no_more_actions_are_guessed_than_asked(fake_engine, cot_grammar, fast_rule, ahead):
    plain = run(fake_engine(fast_rule), cot_grammar, NO_DRAFT)
    draft = Draft(plain.action_indices, in_prefill=False, actions_ahead=ahead)
    drafted = run(fake_engine(fast_rule), cot_grammar, draft)
    assert said(drafted) == said(plain)
    assert max((guess.count for guess in drafted.guesses), default=0) == min(ahead, 9)


def test_samples_with_drafts_have_the_models_distribution(fake_engine, cot_grammar):
    """Leviathan et al. 2023, appendix A.1: what is drawn does not depend on what was guessed."""
    likely = [3, 7, 11]
    chances = np.array([0.6, 0.3, 0.1])

    @cache
    def turned(turn):
        logits = np.full(VOCAB, -np.inf, np.float32)
        logits[cot_grammar.choice.fast_id] = 0
        logits[[START + index for index in likely]] = np.log(np.roll(chances, turn))
        return logits

    def rule(history):
        # the second action depends on the first, whether that was guessed or not
        return turned(history[-1] % 3 if history[-1] >= START else 0)

    drawn = np.array(
        [
            run(
                fake_engine(rule),
                cot_grammar,
                Draft(tuple([likely[seed % 3]] * 10), in_prefill=bool(seed % 2)),
                sampling=Sampling(temperature=1, seed=seed),
            ).action_indices[:2]
            for seed in range(3000)
        ]
    )
    for first, index in enumerate(likely):
        assert np.mean(drawn[:, 0] == index) == pytest.approx(chances[first], abs=0.03)
        behind = drawn[drawn[:, 0] == index, 1]
        expected = np.roll(chances, (START + index) % 3)
        found = [np.mean(behind == other) for other in likely]
        assert found == pytest.approx(expected, abs=4 * np.sqrt(0.25 / len(behind)))


def test_a_wrong_mode_in_the_prefill_costs_one_pass_at_most(fake_engine, cot_grammar, fast_rule):
    wrong = run(fake_engine(fast_rule), cot_grammar, Draft(mode="slow"))
    assert wrong.mode == "fast"
    assert wrong.forward_passes == 11


def test_one_wrong_action_costs_a_pass_and_the_models_own_choices_come_next(
    fake_engine, cot_grammar
):
    """A model whose action depends on the step alone accepts its own choices behind an error."""

    def rule(history):
        logits = np.zeros(VOCAB, np.float32)
        logits[cot_grammar.choice.fast_id] = 1
        logits[START + len(history) % 50] = 9
        return logits

    plain = run(fake_engine(rule), cot_grammar, NO_DRAFT)
    wrong = list(plain.action_indices)
    wrong[2], wrong[6] = 1999, 1998
    drafted = run(fake_engine(rule), cot_grammar, Draft(actions=tuple(wrong)))
    assert said(drafted) == said(plain)
    assert drafted.forward_passes == 2


def test_reasoning_that_comes_again_takes_few_passes(fake_engine, cot_grammar):
    rule = babble(7, [100, 101, 102, 103, cot_grammar.choice.slow_id])
    options = {"mode": "slow", "thinking_token_budget": 40}
    plain = run(fake_engine(rule), cot_grammar, NO_DRAFT, **options)
    assert plain.thinking_tokens == 40
    again = Draft(plain.action_indices, plain.output_ids, "slow")
    drafted = run(fake_engine(rule), cot_grammar, again, **options)
    assert said(drafted) == said(plain)
    assert drafted.forward_passes <= plain.forward_passes / 5


def test_nothing_to_correct_changes_nothing():
    rows = [5, 900, 31, 77]
    assert corrected(CODEBOOK, rows, rows) == rows
    assert corrected(CODEBOOK, [], []) == []


def test_a_correction_is_carried_on_into_the_steps_behind():
    """Who drives faster in the first step is guessed to drive faster in the next ones, too."""
    steps = np.arange(0.5, 8.5, 0.01)
    poses = np.stack([steps, np.zeros_like(steps), np.zeros_like(steps)], 1)
    straight = Codebook(pose_to_corners(poses).astype(np.float32))
    guess = [100, 100, 100, 100]  # 1.5 m a step
    better = corrected(straight, guess, [200, 100, 100, 100])  # 1 m more in the first
    np.testing.assert_allclose(better, [200, 100 + 70, 100 + 49, 100 + 34], atol=1)


def test_corrections_find_the_plan_of_a_sluggish_model_sooner(fake_engine, cot_grammar):
    """Each step of this model is near the step before it, as a car's is."""

    def rule(history):
        logits = np.zeros(VOCAB, np.float32)
        logits[cot_grammar.choice.fast_id] = 1
        before = CODEBOOK.poses[history[-1] - START] if history[-1] >= START else [6.0, 0, 0]
        logits[START + CODEBOOK.nearest(np.array([before]) * 0.9)[0]] = 9
        return logits

    draft = Draft(tuple(CODEBOOK.nearest(np.array([[3.0, 0, 0]] * 10))))
    plain = run(fake_engine(rule), cot_grammar, draft)
    helped = run(fake_engine(rule), cot_grammar, draft, codebook=CODEBOOK)
    assert said(helped) == said(plain)
    assert helped.forward_passes < plain.forward_passes


@pytest.mark.parametrize(
    ("texts", "written", "expected"),
    [
        ([[1, 2, 3, 4, 5]], [9, 2, 3], [4, 5]),
        ([[1, 2, 3, 4, 2, 9]], [1, 2], [3, 4]),  # the longer match, not the later one
        ([[1, 2, 3, 1, 2, 4]], [0, 1, 2], [4]),  # of equal ones the later
        ([[7, 2, 3], [8, 2, 4]], [2], [3]),  # of equal texts the first
        ([[1, 2, 3]], [3], []),  # nothing follows it
        ([[1, 2, 3]], [9], []),
        ([[]], [1], []),
        ([], [1], []),
        ([[1, 2]], [], []),
    ],
)
def test_a_continuation_is_what_followed_the_like(texts, written, expected):
    assert continuation(texts, written, 2) == expected[:2]


@pytest.mark.parametrize(
    ("doubt", "certainty", "settled"),
    [([], 9, False), ([1], 2.5, True), ([1], 1.5, False), ([2], 1, True)],
)
def test_a_step_within_the_models_doubt_is_settled(doubt, certainty, settled):
    """Given action 1, the model chooses action 0, 0.3 m away, and doubts between it and another."""
    poses = [[4.0, 0, 0], [4.3, 0, 0], [6.0, 0, 0]]
    codebook = Codebook(pose_to_corners(np.array(poses)).astype(np.float32))
    logits = np.full((1, 3), -50.0, np.float32)
    logits[0, [0, *doubt]] = 0
    ask = partial(_settled, codebook, [1], [0], logits)
    assert ask(Refinement(3, certainty=certainty)) is settled
    assert ask(Refinement(3)) is False
    assert ask(Refinement(3, tolerance=0.31)) is True
    assert _settled(codebook, [0], [0], logits, Refinement(3)) is True


@quick
@given(st.integers(1, 11), st.integers(0, 2**32 - 1))
def test_so_many_passes_make_so_many_actions_exact(fake_engine, cot_grammar, passes, seed):
    rule = babble(seed, [cot_grammar.choice.fast_id])
    exact = run(fake_engine(rule), cot_grammar, NO_DRAFT, mode="fast")
    rng = np.random.default_rng(seed)
    draft = Draft(tuple(rng.integers(0, 2048, 10).tolist()))
    options = {"mode": "fast", "refinement": Refinement(passes), "codebook": CODEBOOK}
    refined = run(fake_engine(rule), cot_grammar, draft, **options)
    assert refined.action_indices[:passes] == exact.action_indices[:passes]
    assert refined.forward_passes <= passes
