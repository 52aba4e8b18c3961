"""The grammar as a mask: one token at a time gives the answers that decoding gives."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from autovla_rt.errors import InputError
from autovla_rt.runtime.decode import decode
from autovla_rt.runtime.grammar_mask import GrammarMask
from autovla_rt.runtime.sampling import Sampler, Sampling
from autovla_rt.runtime.trace import Trace

PROMPT = (11, 12, 13)
END = 151645
VOCABULARY = 151665 + 2048


@pytest.fixture(scope="module")
def grammar_of(cot_grammar, direct_grammar):
    return {"direct": direct_grammar, "fast": cot_grammar, "slow": cot_grammar, "auto": cot_grammar}


def masked(rule, mask):
    """Decode greedily under the mask alone, until the end token."""
    answer = []
    while not answer or answer[-1] != END:
        allowed = mask.allowed(answer)
        logits = rule((*PROMPT, *answer))
        answer.append(int(allowed[np.argmax(logits[allowed])]))
    return tuple(answer)


def decoded(fake_engine, rule, grammar, **options):
    engine = fake_engine(rule)
    prompt = engine.embed(np.array(PROMPT))
    sampler = Sampler(Sampling())
    return decode(engine, grammar, PROMPT, prompt, sampler=sampler, trace=Trace(), **options)


def noise(seed, favoured):
    """Logits that depend on the whole history, with a liking for some ids."""

    def rule(history):
        rng = np.random.default_rng([seed, *history])
        logits = rng.standard_normal(VOCABULARY).astype(np.float32)
        logits[favoured] += 6
        return logits

    return rule


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**32), mode=st.sampled_from(["direct", "auto", "fast", "slow"]))
def test_greedy_answers_are_those_of_decoding(fake_engine, grammar_of, tokenizer, seed, mode):
    """Whatever the logits; line ends and closers are liked, so that reasonings end."""
    likes = [tokenizer.token_to_id(token) for token in ("</", "Ċ", "Ġroad", ".Ċ", "é")]
    rule = noise(seed, likes)
    grammar, how = grammar_of[mode], "auto" if mode == "direct" else mode
    found = decoded(fake_engine, rule, grammar, mode=how, thinking_token_budget=60)
    assume(found.finish_reason == "stop")
    assert masked(rule, GrammarMask(grammar, how, 60)) == found.output_ids


@pytest.mark.parametrize("budget", range(8))
def test_a_reasoning_is_closed_at_its_budget(cot_grammar, tokenizer, budget):
    """Also behind a line end, which is the closing's own, and within a character."""
    words = tokenizer.encode("It bends.\nSlow 𓂀").ids
    mask = GrammarMask(cot_grammar, "slow", budget)
    answer, thoughts = [], []
    while not answer or answer[-1] != END:
        allowed = mask.allowed(answer)
        is_free = len(allowed) > 2048
        answer.append(words[len(thoughts)] if is_free else int(allowed[0]))
        thoughts += answer[-1:] if is_free else []
    assert thoughts == words[:budget]
    written = tokenizer.decode(thoughts)
    text = tokenizer.decode(answer, skip_special_tokens=False)
    close = "" if not written or written.endswith("\n") else "\n"
    assert f"\n{written}{close}</think>\n" in text
    assert text.count("<action_0>") == 10
    assert mask.allowed(answer).tolist() == [END]


def test_no_more_is_allowed_than_the_grammar_has(cot_grammar):
    opening, choice = list(cot_grammar.opening), cot_grammar.choice
    mask = GrammarMask(cot_grammar, "auto", 9)
    assert mask.allowed(opening[:2]).tolist() == opening[2:3]
    assert mask.allowed(opening).tolist() == [choice.fast_id, choice.slow_id]
    for mode, token in (("fast", choice.fast_id), ("slow", choice.slow_id)):
        assert GrammarMask(cot_grammar, mode, 9).allowed(opening).tolist() == [token]
    before = [*opening, choice.fast_id, *cot_grammar.branches["fast"][0].ids]
    np.testing.assert_array_equal(mask.allowed([*before, 151665]), cot_grammar.action_ids)


def test_what_the_grammar_cannot_serve_is_refused(direct_grammar, cot_grammar):
    with pytest.raises(InputError, match="needs a bundle with chain of thought"):
        GrammarMask(direct_grammar, "slow", 9)
    with pytest.raises(InputError, match="thinking_token_budget must be >= 0"):
        GrammarMask(cot_grammar, "slow", -1)
