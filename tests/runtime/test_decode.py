import math

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from autovla_rt.config import AnswerFormat
from autovla_rt.errors import BundleError, CapacityError, InputError
from autovla_rt.runtime.decode import decode, generate
from autovla_rt.runtime.grammar import render
from autovla_rt.runtime.sampling import Sampler, Sampling
from autovla_rt.runtime.trace import Trace

END = 151645
START = 151665
VOCAB = START + 2048
PROMPT = np.array([151644, 872, 198, 151656, 151656, 100, 151645, 198], np.int64)
PLAN = (7, 7, 0, 2047, 12, 5, 6, 7, 8, 9)
REASONING = "1) A bus stands ahead.\n2) Wait, then go. 日本"

quick = settings(max_examples=40, suppress_health_check=list(HealthCheck), deadline=None)


def run(engine, grammar, **options):
    options = {"mode": "auto", "thinking_token_budget": 200, "trace": Trace()} | options
    options.setdefault("sampler", Sampler(Sampling()))
    return decode(engine, grammar, PROMPT, engine.embed(PROMPT), **options)


def encode(tokenizer, text):
    return tuple(tokenizer.encode(text, add_special_tokens=False).ids)


@pytest.fixture(scope="module")
def answers(tokenizer, answer_format: AnswerFormat):
    """Ids of whole answers as a model in format writes them, by mode."""
    plan = "".join(f"<action_{i}>" for i in PLAN)
    return {
        mode: (*encode(tokenizer, render(template, actions=plan, reasoning=REASONING)), END)
        for mode, template in answer_format
    }


@pytest.fixture
def writes(fake_engine, script, answers):
    """An engine that writes the answer of a mode."""
    return lambda mode, capacity=4096: fake_engine(script(PROMPT, answers[mode]), capacity)


@pytest.fixture
def grammar_of(cot_grammar, direct_grammar):
    return {"direct": direct_grammar, "fast": cot_grammar, "slow": cot_grammar}


@pytest.mark.parametrize("mode", ["direct", "fast", "slow"])
def test_constrained_and_free_decoding_agree_on_a_model_in_format(
    writes, grammar_of, answers, mode
):
    decoded = run(writes(mode), grammar_of[mode])
    engine = writes(mode)
    generated = generate(
        engine,
        engine.embed(PROMPT),
        PROMPT,
        sampler=Sampler(Sampling()),
        max_new_tokens=500,
        end_token_ids=[END, 151643],
    )
    assert decoded.output_ids == tuple(generated) == answers[mode]
    assert decoded.mode == mode
    assert decoded.action_indices == PLAN
    assert decoded.action_ids == tuple(START + i for i in PLAN)
    assert decoded.finish_reason == "stop"
    assert decoded.reasoning == (REASONING if mode == "slow" else "")
    assert engine.count("extend") == len(answers[mode])


@pytest.mark.parametrize("mode", ["direct", "fast", "slow"])
def test_the_engine_saw_the_prompt_and_the_answer_in_order(writes, grammar_of, answers, mode):
    engine = writes(mode)
    run(engine, grammar_of[mode])
    held = answers[mode][: answers[mode].index(START + PLAN[-1], -8)]
    assert engine.history == [*PROMPT, *held]


def test_a_direct_plan_takes_one_pass_an_action(writes, direct_grammar):
    engine = writes("direct")
    decoded = run(engine, direct_grammar)
    passes = [k for call, k in engine.calls if call == "extend"]
    assert passes == [len(PROMPT) + len(direct_grammar.opening)] + [1] * 9
    assert decoded.forward_passes == 10
    assert engine.count("logits") == 0
    assert decoded.p_slow is None


def test_a_fast_plan_takes_the_prefill_and_one_pass_an_action(writes, cot_grammar):
    engine = writes("fast")
    decoded = run(engine, cot_grammar)
    passes = [k for call, k in engine.calls if call == "extend"]
    scaffold = 1 + len(cot_grammar.branches["fast"][0].ids)
    assert passes == [len(PROMPT) + len(cot_grammar.opening), scaffold] + [1] * 9
    assert decoded.forward_passes == 11
    assert engine.count("logits") == 0
    assert engine.count("choice_logits") == 1
    assert engine.count("action_logits") == 10
    assert engine.count("truncate") == 0


def test_a_slow_plan_takes_a_pass_a_thinking_token_more(writes, cot_grammar, tokenizer):
    engine = writes("slow")
    decoded = run(engine, cot_grammar)
    thinking = len(encode(tokenizer, REASONING + "\n"))
    assert decoded.thinking_tokens == thinking
    assert decoded.forward_passes == 1 + (thinking + 1) + 10
    assert engine.count("truncate") == 0


def test_spans_cover_the_stages_that_ran(writes, cot_grammar, direct_grammar):
    traces = {mode: Trace() for mode in ("direct", "fast", "slow")}
    run(writes("direct"), direct_grammar, trace=traces["direct"])
    run(writes("fast"), cot_grammar, trace=traces["fast"])
    run(writes("slow"), cot_grammar, trace=traces["slow"])
    stages = {mode: list(trace.stages_ms()) for mode, trace in traces.items()}
    assert stages["direct"] == ["prefill", "actions"]
    assert stages["fast"] == ["prefill", "decision", "actions"]
    assert stages["slow"] == ["prefill", "decision", "reasoning", "actions"]


def test_prompt_positions_in_the_cache_are_not_passed_again(writes, direct_grammar, answers):
    engine = writes("direct")
    engine.extend(engine.embed(PROMPT[:3]))
    decoded = decode(
        engine,
        direct_grammar,
        PROMPT,
        engine.embed(PROMPT[3:]),
        sampler=Sampler(Sampling()),
        mode="auto",
        thinking_token_budget=0,
        trace=Trace(),
    )
    assert decoded.output_ids == answers["direct"]


def test_a_stale_cache_is_a_defect_not_an_answer(writes, direct_grammar):
    engine = writes("direct")
    run(engine, direct_grammar)
    with pytest.raises(ValueError, match="truncate the engine"):
        run(engine, direct_grammar)


# ---- decision -----------------------------------------------------------------------------------


def deciding(fake_engine, choice, fast, slow):
    """An engine whose choice logits are given; an illegal token is the favourite everywhere."""

    def rule(history):
        logits = np.full(VOCAB, -5, np.float32)
        logits[END] = 1e4
        logits[choice.fast_id], logits[choice.slow_id] = fast, slow
        return logits

    return fake_engine(rule)


@pytest.mark.parametrize("mode", ["auto", "fast", "slow"])
@pytest.mark.parametrize(
    ("fast", "slow"), [(0.0, 1.0), (2.5, -1), (-math.inf, 0), (3e38, -3e38), (40, 40.5)]
)
def test_p_slow_is_the_softmax_of_the_two_choices_in_every_mode(
    fake_engine, cot_grammar, mode, fast, slow
):
    engine = deciding(fake_engine, cot_grammar.choice, fast, slow)
    decoded = run(engine, cot_grammar, mode=mode, thinking_token_budget=0)
    difference = slow - fast
    expected = 0.0 if difference < -700 else 1 / (1 + math.exp(-difference))
    assert decoded.p_slow == pytest.approx(expected, rel=1e-6)
    assert decoded.mode == (("slow" if slow > fast else "fast") if mode == "auto" else mode)


def test_the_sampler_draws_the_decision_too(fake_engine, cot_grammar):
    modes = [
        run(
            deciding(fake_engine, cot_grammar.choice, 0.0, 0.0),
            cot_grammar,
            thinking_token_budget=0,
            sampler=Sampler(Sampling(temperature=1.0, seed=seed)),
        ).mode
        for seed in range(12)
    ]
    assert set(modes) == {"fast", "slow"}


# ---- cutting the reasoning ----------------------------------------------------------------------


@pytest.mark.parametrize("budget", range(22))
def test_reasoning_is_closed_at_its_budget(
    writes, cot_grammar, tokenizer, answer_format, answers, budget
):
    engine = writes("slow")
    decoded = run(engine, cot_grammar, thinking_token_budget=budget)
    whole = encode(tokenizer, REASONING + "\n")
    if budget > len(whole):
        assert decoded.output_ids == answers["slow"]
        return
    assert decoded.finish_reason == "thinking_budget"
    assert decoded.thinking_tokens == budget
    assert REASONING.startswith(decoded.reasoning)
    assert len(decoded.action_ids) == 10
    plan = "".join(f"<action_{i}>" for i in decoded.action_indices)
    text = render(answer_format.slow, actions=plan, reasoning=decoded.reasoning)
    if budget == 0:
        text = text.replace("\n\n", "\n", 1)  # the opening's line end serves
    assert decoded.output_ids == (*encode(tokenizer, text), END)
    assert engine.history == list(PROMPT) + list(decoded.output_ids[: engine.length - len(PROMPT)])
    assert sum(k for call, k in engine.calls if call == "truncate") <= 1


@pytest.mark.parametrize(("reasoning", "budget"), [("Each pass\n    later", 4), ("see 𓂀", 3)])
def test_a_cut_forgets_what_the_cache_holds_too_much(
    fake_engine, script, cot_grammar, tokenizer, answer_format, reasoning, budget
):
    """After an indent, and inside a character behind a space, a cut takes back two ids."""
    plan = "<action_1>" * 10
    answer = encode(tokenizer, render(answer_format.slow, actions=plan, reasoning=reasoning))
    engine = fake_engine(script(PROMPT, answer))
    decoded = run(engine, cot_grammar, thinking_token_budget=budget)
    assert ("truncate", 1) in engine.calls
    assert decoded.thinking_tokens == budget
    text = render(
        answer_format.slow,
        actions="".join(f"<action_{i}>" for i in decoded.action_indices),
        reasoning=decoded.reasoning,
    )
    assert decoded.output_ids == (*encode(tokenizer, text), END)
    assert engine.history == list(PROMPT) + list(decoded.output_ids[: engine.length - len(PROMPT)])


def test_a_full_cache_closes_the_reasoning_too(writes, cot_grammar):
    shortest = len(PROMPT) + cot_grammar.positions("slow")
    for spare in range(6):
        engine = writes("slow", capacity=shortest + spare)
        decoded = run(engine, cot_grammar, thinking_token_budget=100)
        assert decoded.finish_reason == "capacity"
        assert decoded.thinking_tokens == spare
        assert len(decoded.action_ids) == 10
        assert engine.length <= engine.capacity


@pytest.mark.parametrize("mode", ["direct", "fast", "slow"])
def test_a_prompt_without_room_for_the_plan_is_refused_before_any_pass(writes, grammar_of, mode):
    grammar = grammar_of[mode]
    request = "auto" if mode == "direct" else mode
    needed = len(PROMPT) + grammar.positions(mode)
    decoded = run(writes(mode, capacity=needed), grammar, mode=request, thinking_token_budget=0)
    assert len(decoded.action_ids) == 10
    engine = writes(mode, capacity=needed - 1)
    with pytest.raises(CapacityError, match=rf"needs {needed} .* the engine has {needed - 1}"):
        run(engine, grammar, mode=request)
    assert engine.calls == []


def test_a_model_that_may_decide_needs_room_for_either_answer(writes, cot_grammar):
    fast, slow = (len(PROMPT) + cot_grammar.positions(mode) for mode in ("fast", "slow"))
    assert fast < slow
    assert len(run(writes("fast", capacity=fast), cot_grammar, mode="fast").action_ids) == 10
    with pytest.raises(CapacityError, match=f"needs {slow}"):
        run(writes("fast", capacity=slow - 1), cot_grammar)


# ---- whatever the logits ------------------------------------------------------------------------

EXTREMES = {
    "huge": lambda rng: rng.choice([3e38, -3e38, 1e30], VOCAB),
    "equal": lambda _: np.zeros(VOCAB),
    "negative": lambda rng: -np.exp(rng.uniform(-80, 80, VOCAB)),
    "minus infinity": lambda rng: np.where(rng.random(VOCAB) < 0.99, -np.inf, rng.random(VOCAB)),
    "noise": lambda rng: rng.normal(0, 5, VOCAB),
    "specials": lambda _: np.where(np.arange(VOCAB) >= 151643, 1e9, 0.0),
    "line ends": lambda rng: np.where(np.isin(np.arange(VOCAB), [198, 522]), 9, rng.random(VOCAB)),
}


@quick
@given(
    kinds=st.lists(st.sampled_from(sorted(EXTREMES)), min_size=1, max_size=4),
    seed=st.integers(0, 1000),
    mode=st.sampled_from(["auto", "fast", "slow"]),
    budget=st.integers(0, 12),
    spare=st.integers(0, 20),
    sampling=st.sampled_from(
        [
            Sampling(),
            Sampling(repetition_penalty=1.05),
            Sampling(temperature=0.8, top_k=20, top_p=0.2, repetition_penalty=1.05),
            Sampling(temperature=2.0),
        ]
    ),
)
def test_every_answer_is_whole_whatever_the_logits(
    fake_engine, cot_grammar, tokenizer, kinds, seed, mode, budget, spare, sampling
):
    choice = [cot_grammar.choice.fast_id, cot_grammar.choice.slow_id]

    def rule(history):
        rng = np.random.default_rng([seed, len(history)])
        logits = EXTREMES[kinds[len(history) % len(kinds)]](rng).astype(np.float32)
        logits[choice] = np.maximum(logits[choice], -3e38)
        logits[START + 3] = max(logits[START + 3], -3e38)  # some action is possible
        return logits

    needed = max(cot_grammar.positions(m) for m in ("fast", "slow"))
    engine = fake_engine(rule, len(PROMPT) + needed + spare)
    decoded = run(
        engine, cot_grammar, mode=mode, thinking_token_budget=budget, sampler=Sampler(sampling)
    )
    output = decoded.output_ids
    *_, tail = cot_grammar.branches[decoded.mode]
    assert output[-len(tail.ids) :] == tail.ids
    assert [i for i in output if i >= START] == list(decoded.action_ids)
    assert output[-len(tail.ids) - 10 : -len(tail.ids)] == decoded.action_ids
    assert len(decoded.action_indices) == 10
    assert all(0 <= i < 2048 for i in decoded.action_indices)
    assert [i for i in output if 151643 <= i < START] == [END]
    assert decoded.thinking_tokens <= budget
    assert engine.history == [*PROMPT, *output[: engine.length - len(PROMPT)]]
    text = tokenizer.decode(list(output), skip_special_tokens=False)
    assert text.count("\n</think>\n<answer>\n") == 1


@pytest.mark.parametrize(
    ("stage", "token"), [("decision", None), ("reasoning", 100), ("action", START + 4)]
)
def test_nan_logits_name_their_stage(fake_engine, cot_grammar, answers, script, stage, token):
    on_script = script(PROMPT, answers["slow"])
    at = {
        "decision": len(cot_grammar.opening),
        "reasoning": len(cot_grammar.opening) + 1 + len(cot_grammar.branches["slow"][0].ids) + 2,
        "action": answers["slow"].index(START + PLAN[0]) + 3,
    }[stage]

    def rule(history):
        logits = on_script(history)
        if len(history) == len(PROMPT) + at:
            logits[[token] if token else [cot_grammar.choice.fast_id]] = np.nan
        return logits

    with pytest.raises(BundleError, match=f"logits for the {stage}"):
        run(fake_engine(rule), cot_grammar)


def test_the_penalty_sees_prompt_and_output(fake_engine, direct_grammar):
    """Two actions alternate when each is penalised after its use; a third is in the prompt."""
    prompt = np.array([5, START + 2], np.int64)

    def rule(history):
        logits = np.zeros(VOCAB, np.float32)
        logits[START : START + 3] = [2.0, 1.9, 2.05]
        return logits

    engine = fake_engine(rule)
    decoded = decode(
        engine,
        direct_grammar,
        prompt,
        engine.embed(prompt),
        sampler=Sampler(Sampling(repetition_penalty=1.2)),
        mode="auto",
        thinking_token_budget=0,
        trace=Trace(),
    )
    assert decoded.action_indices == (0, 1, *([2] * 8))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "quick"}, "auto, fast or slow"),
        ({"thinking_token_budget": -1}, "thinking_token_budget"),
    ],
)
def test_unusable_requests_are_refused(writes, cot_grammar, options, message):
    with pytest.raises(InputError, match=message):
        run(writes("fast"), cot_grammar, **options)


def test_forcing_a_mode_needs_chain_of_thought(writes, direct_grammar):
    with pytest.raises(InputError, match="needs a bundle with chain of thought"):
        run(writes("direct"), direct_grammar, mode="fast")


# ---- without the grammar ------------------------------------------------------------------------


def generated(engine, **options):
    options = {"max_new_tokens": 500, "end_token_ids": [END]} | options
    return generate(engine, engine.embed(PROMPT), PROMPT, sampler=Sampler(Sampling()), **options)


def test_free_generation_stops_at_its_limit_without_a_last_pass(writes, answers):
    engine = writes("slow")
    assert tuple(generated(engine, max_new_tokens=5)) == answers["slow"][:5]
    assert engine.count("extend") == 5


def test_free_generation_is_not_bound_to_the_format(fake_engine, script):
    engine = fake_engine(script(PROMPT, [START + 5, 151656, 42]))
    assert list(generated(engine)) == [START + 5, 151656, 42, END]


def test_free_generation_says_when_the_cache_is_full(writes):
    engine = writes("slow", capacity=len(PROMPT) + 4)
    tokens = generated(engine)
    assert [next(tokens) for _ in range(5)]
    with pytest.raises(CapacityError):
        next(tokens)
