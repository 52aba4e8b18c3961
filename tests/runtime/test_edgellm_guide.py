"""The guides of Edge-LLM's decoding, held by its grammar engine, allow what our grammar does."""

import re

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer

from autovla_rt.config import ActionSpace, AnswerFormat, Slot
from autovla_rt.errors import CheckpointError
from autovla_rt.runtime import edgellm_guide
from autovla_rt.runtime.edgellm_guide import (
    answer_tokens,
    answer_vocabulary,
    check_markers,
    ebnf,
    guide_modes,
    regular_expression,
)
from autovla_rt.runtime.grammar import Actions, Free, Literal, compile_answer, render

NUM_POSES = 10
ACTIONS, REASONING = Slot(slot="actions"), Slot(slot="reasoning")
ANSWER = AnswerFormat(
    direct=("\n<answer>\nMotion (5 s): ", ACTIONS, "\n</answer>"),
    fast=("<think>\nClear.\n</think>\n<answer>\nMotion (5 s): ", ACTIONS, "\n</answer>"),
    slow=(
        "<think>\nHard, look closely.\n",
        REASONING,
        "\n</think>\n<answer>\nMotion (5 s): ",
        ACTIONS,
        "\n</answer>",
    ),
)
REASONINGS = (
    *("A car ahead.", "Stop", "", "1) It rains.\n2) We slow </down>.\n\nGo.", "日。🚗", "  a\n\n"),
    *("x < y", "<b>bold</b>", "Line\n < not a closer", "<", "ends in <\nnext"),
)

plans = st.lists(st.integers(0, 2047), min_size=NUM_POSES, max_size=NUM_POSES)
texts = st.sampled_from(REASONINGS) | st.text(st.characters(exclude_categories=["Cs"]), max_size=40)


class Case:
    """A tokenizer, its grammars, and XGrammar with its vocabulary."""

    def __init__(self, folder, use_cot):
        matching = pytest.importorskip("xgrammar_matcher")
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.space = ActionSpace(
            action_start_id=self.tokenizer.token_to_id("<action_0>"), num_actions=2048
        )
        self.ends = [self.tokenizer.token_to_id(of) for of in ("<|im_end|>", "<|endoftext|>")]
        self.grammar = compile_answer(
            self.tokenizer, ANSWER, use_cot=use_cot, actions=self.space, end_token_id=self.ends[0]
        )
        self.guide = matching.Guide(self.tokenizer, self.ends)
        self.matchers = {
            mode: self.guide.ebnf(ebnf(self.grammar, mode)) for mode in guide_modes(self.grammar)
        }
        self.by_text = {
            mode: self.guide.regex(regular_expression(ANSWER, mode, self.space))
            for mode in guide_modes(self.grammar)
        }

    def ids(self, mode, plan, reasoning=""):
        """An answer as our decoding writes it, and its end."""
        ids = list(self.grammar.opening)
        if self.grammar.choice is not None:
            ids.append(getattr(self.grammar.choice, f"{mode}_id"))
        for segment in self.grammar.branches[mode]:
            if isinstance(segment, Literal):
                ids += segment.ids
            elif isinstance(segment, Actions):
                ids += [self.space.action_start_id + of for of in plan]
            else:
                ids += self.closed(reasoning)
        return ids

    def closed(self, reasoning):
        """Reasoning with the text that closes it."""
        free = self.free
        ids = self.tokenizer.encode(reasoning, add_special_tokens=False).ids
        kept, closing = free.cut(ids)
        return [*ids[:kept], *closing]

    def reasoning(self, closed):
        """The ids before the one that closes."""
        closes = (self.free.closes(closed[:of], closed[of]) for of in range(len(closed)))
        return closed[: list(closes).index(True)]

    @property
    def free(self):
        return next(of for of in self.grammar.branches["slow"] if isinstance(of, Free))


@pytest.fixture(scope="module", params=["cot", "direct"])
def qwen(request, qwen_processor):
    """Qwen2.5's vocabulary with the actions at its end."""
    return Case(qwen_processor, request.param == "cot")


@pytest.fixture(scope="module")
def miniature(demo):
    return Case(demo.base, True)


def own_steps(grammar, mode, reasoning):
    """Yield what our grammar allows at each place of an answer, and nothing at its end."""
    for token_id in grammar.opening:
        yield {token_id}
    if grammar.choice is not None:
        yield {grammar.choice.fast_id, grammar.choice.slow_id}
    for segment in grammar.branches[mode]:
        if isinstance(segment, Literal):
            yield from ({of} for of in segment.ids)
        elif isinstance(segment, Actions):
            yield from (set(grammar.action_ids.tolist()) for _ in range(segment.count))
        else:
            legal = set(segment.legal_ids.tolist())
            for place in range(len(reasoning) + 1):
                closes = segment.closes(reasoning[:place], segment.closer_id)
                yield legal | {segment.closer_id} if closes else legal
            yield from ({of} for of in segment.closing)


def check_steps(case, mode, guide_mode, answer, reasoning=()):
    matcher = case.guide.ebnf(ebnf(case.grammar, guide_mode))
    for place, expected in enumerate(own_steps(case.grammar, mode, reasoning)):
        if place == len(answer) - 1:
            expected = set(case.ends)  # XGrammar ends with any of the stop tokens
        elif guide_mode != edgellm_guide.AUTO and expected == choice_ids(case.grammar):
            expected = {answer[place]}
        assert set(matcher.allowed().tolist()) == expected, place
        assert matcher.accept(answer[place]), place


def choice_ids(grammar):
    return set() if grammar.choice is None else {grammar.choice.fast_id, grammar.choice.slow_id}


def test_every_step_without_reasoning_allows_what_our_grammar_does(qwen):
    mode = "direct" if qwen.grammar.choice is None else "fast"
    for guide_mode in {mode, guide_modes(qwen.grammar)[0]}:
        check_steps(qwen, mode, guide_mode, qwen.ids(mode, range(5, 15)))


def test_an_answer_is_spelled_as_the_tokenizer_spells_it(qwen):
    for mode in qwen.grammar.branches:
        actions = "".join(f"<action_{of}>" for of in range(10))
        text = render(getattr(ANSWER, mode), actions=actions, reasoning="A car.\n\nWe wait.")
        encoded = [*qwen.tokenizer.encode(text).ids, qwen.ends[0]]
        assert encoded == qwen.ids(mode, range(10), "A car.\n\nWe wait.")


@pytest.mark.parametrize("guide_mode", ["auto", "slow"])
@pytest.mark.parametrize("reasoning", REASONINGS)
def test_every_step_of_reasoning_allows_what_our_grammar_does(miniature, guide_mode, reasoning):
    held = miniature.reasoning(miniature.closed(reasoning))
    answer = miniature.ids("slow", range(2000, 2010), reasoning)
    check_steps(miniature, "slow", guide_mode, answer, held)


def test_every_step_of_reasoning_in_the_whole_vocabulary(qwen):
    if qwen.grammar.choice is None:
        pytest.skip("direct answers have no reasoning")
    reasoning = "A car.\n\nWe wait.\n"
    held = qwen.reasoning(qwen.closed(reasoning))
    check_steps(qwen, "slow", "auto", qwen.ids("slow", range(10), reasoning), held)


@settings(deadline=None, max_examples=150)
@given(plan=plans, reasoning=texts, mode=st.sampled_from(["fast", "slow"]))
def test_answers_are_accepted_by_token_and_by_text(miniature, plan, reasoning, mode):
    assume(not any(line.startswith("</") for line in reasoning.split("\n")))
    assume(all(miniature.free.legal[miniature.tokenizer.encode(reasoning).ids]))
    answer = miniature.ids(mode, plan, reasoning)
    for guide_mode in ("auto", mode):
        assert miniature.matchers[guide_mode].accepts(answer)
        assert miniature.by_text[guide_mode].accepts(answer)
    other = {"fast": "slow", "slow": "fast"}[mode]
    assert not miniature.matchers[other].accepts(answer)
    assert not miniature.by_text[other].accepts(answer)


@settings(deadline=None, max_examples=100)
@given(plan=plans, data=st.data())
def test_other_answers_are_refused(miniature, plan, data):
    """One token is another, or missing."""
    answer = miniature.ids("fast", plan)
    place = data.draw(st.integers(0, len(answer) - 1))
    other = data.draw(st.integers(0, miniature.guide.size - 1))
    both_ends = {answer[place], other} == set(miniature.ends)
    both_actions = min(answer[place], other) >= miniature.space.action_start_id
    changed = [*answer[:place], other, *answer[place + 1 :]]
    same = other == answer[place] or both_ends or both_actions
    assert miniature.matchers["fast"].accepts(changed) == same
    assert not miniature.matchers["fast"].accepts([*answer[:place], *answer[place + 1 :]])


@pytest.mark.parametrize("count", [0, 1, 9, 11, 20])
def test_another_number_of_actions_is_refused(miniature, count):
    for mode, reasoning in (("fast", ""), ("slow", "A car.")):
        answer = miniature.ids(mode, range(count), reasoning)
        assert not miniature.matchers["auto"].accepts(answer)
        assert not miniature.by_text["auto"].accepts(answer)


def test_an_action_spelled_by_other_tokens_passes_by_text_alone(qwen):
    mode = guide_modes(qwen.grammar)[-1] if qwen.grammar.choice is None else "fast"
    answer = qwen.ids(mode, range(NUM_POSES))
    place = answer.index(qwen.space.action_start_id + 3)
    bare = Tokenizer.from_str(qwen.tokenizer.to_str())
    spelled = [bare.token_to_id(of) for of in ("<", "action", "_", "3", ">")]
    answer[place : place + 1] = spelled
    assert qwen.by_text[mode].accepts(answer)
    assert not qwen.matchers[mode].accepts(answer)


@pytest.mark.parametrize("guide_mode", ["auto", "slow"])
def test_special_tokens_and_actions_are_no_reasoning(miniature, guide_mode):
    for text in ("<|im_start|>", "<|vision_start|>", "<action_7>", "<|endoftext|>"):
        answer = miniature.ids("slow", range(NUM_POSES), f"A {text} car.")
        assert not miniature.matchers[guide_mode].accepts(answer)


def test_a_reduced_vocabulary_counts_in_its_own_rows(qwen):
    matching = pytest.importorskip("xgrammar_matcher")
    mode = "direct" if qwen.grammar.choice is None else "fast"
    ids = answer_vocabulary(qwen.grammar, mode, qwen.ends)
    assert len(ids) < 2048 + 40
    matcher = matching.Guide(qwen.tokenizer, qwen.ends, ids).ebnf(ebnf(qwen.grammar, mode, ids))
    answer = qwen.ids(mode, range(2038, 2048))
    assert matcher.accepts([ids.index(of) for of in answer])
    assert not matcher.accepts([ids.index(of) for of in answer[1:]])
    with pytest.raises(ValueError, match="not in the reduced vocabulary"):
        ebnf(qwen.grammar, mode, ids[:-1])


def test_free_text_has_no_reduced_vocabulary(miniature):
    with pytest.raises(ValueError, match="slow answer has free text"):
        answer_vocabulary(miniature.grammar, "slow", miniature.ends)


def test_tokens_of_an_answer_are_counted(qwen):
    for mode in qwen.grammar.branches:
        longest = answer_tokens(qwen.grammar, mode)
        # Of a slow answer the closing may be cut into more tokens than here.
        assert 0 <= longest - len(qwen.ids(mode, range(NUM_POSES))) <= (3 if mode == "slow" else 0)
    if qwen.grammar.choice is not None:
        assert answer_tokens(qwen.grammar, "auto") == answer_tokens(qwen.grammar, "slow")


def test_the_expression_reads_answers_in_python_too(miniature):
    pattern = regular_expression(ANSWER, "auto", miniature.space)
    actions = "".join(f"<action_{of}>" for of in range(10))
    for text in (
        render(ANSWER.fast, actions=actions),
        render(ANSWER.slow, actions=actions, reasoning="a\n\nb < c"),
    ):
        assert re.fullmatch(pattern, text)
        assert not re.fullmatch(pattern, text.replace("<action_9>", "<action_2048>"))
        assert not re.fullmatch(pattern, text + "\n")


def test_guides_fit_into_what_edge_llm_reads(qwen, monkeypatch):
    for mode in guide_modes(qwen.grammar):
        assert len(ebnf(qwen.grammar, mode)) <= 128 * 1024
        assert len(regular_expression(ANSWER, mode, qwen.space)) <= 128 * 1024
    monkeypatch.setattr(edgellm_guide, "LARGEST_GUIDE", 1000)
    with pytest.raises(CheckpointError, match="expected at most 1000"):
        ebnf(qwen.grammar, guide_modes(qwen.grammar)[0])


def test_tokens_that_edge_llm_takes_for_reasoning_are_refused(miniature):
    check_markers(miniature.tokenizer)
    tokenizer = Tokenizer.from_str(miniature.tokenizer.to_str())
    tokenizer.add_tokens([AddedToken("</think>")])
    with pytest.raises(CheckpointError, match="has </think> as a token of its own"):
        check_markers(tokenizer)
