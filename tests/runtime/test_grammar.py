import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from autovla_rt.config import ActionSpace, AnswerFormat, Slot
from autovla_rt.errors import CheckpointError, RecipeError
from autovla_rt.runtime.grammar import Actions, Literal, compile_answer, render
from autovla_rt.runtime.reasoning import MAX_ROLLBACK

END = 151645
ACTIONS, REASONING = Slot(slot="actions"), Slot(slot="reasoning")
PLAN = "".join(f"<action_{i}>" for i in (7, 7, 0, 2047, 12, 5, 6, 7, 8, 9))

quick = settings(max_examples=60, suppress_health_check=list(HealthCheck), deadline=None)


def encode(tokenizer, text):
    return tuple(tokenizer.encode(text, add_special_tokens=False).ids)


def decode(tokenizer, ids):
    return tokenizer.decode(list(ids), skip_special_tokens=False)


def forced(segments):
    """All ids of a branch without reasoning, the actions of PLAN in their place."""
    ids = []
    for segment in segments:
        match segment:
            case Literal():
                ids += segment.ids
            case Actions():
                ids += [151665 + i for i in (7, 7, 0, 2047, 12, 5, 6, 7, 8, 9)]
            case _:
                ids += segment.joined
    return tuple(ids)


@pytest.fixture(scope="module")
def free(cot_grammar):
    return cot_grammar.branches["slow"][1]


@pytest.fixture(scope="module")
def head(cot_grammar):
    """Ids of the slow answer up to the reasoning."""
    literal = cot_grammar.branches["slow"][0]
    return (*cot_grammar.opening, cot_grammar.choice.slow_id, *literal.ids)


def test_render_fills_slots_by_their_format():
    template = ("v=", Slot(slot="velocity", format=".3f"), " m/s, ", Slot(slot="instruction"))
    assert render(template, velocity=1.23456, instruction="keep") == "v=1.235 m/s, keep"


def test_render_names_a_slot_without_a_value():
    with pytest.raises(RecipeError, match=r"\{actions\}.*\['velocity'\]"):
        render((ACTIONS,), velocity=1.0)


def test_direct_answer_is_the_tokenizers_own_encoding(tokenizer, direct_grammar, answer_format):
    whole = encode(tokenizer, render(answer_format.direct, actions=PLAN))
    assert direct_grammar.choice is None
    assert (*direct_grammar.opening, *forced(direct_grammar.branches["direct"])) == (*whole, END)


def test_fast_answer_is_the_tokenizers_own_encoding(tokenizer, cot_grammar, answer_format):
    whole = encode(tokenizer, render(answer_format.fast, actions=PLAN))
    got = (*cot_grammar.opening, cot_grammar.choice.fast_id, *forced(cot_grammar.branches["fast"]))
    assert got == (*whole, END)


def test_the_choice_is_where_the_answers_first_differ(tokenizer, cot_grammar):
    choice = cot_grammar.choice
    assert decode(tokenizer, cot_grammar.opening) == "<think>\nThis scene is"
    assert decode(tokenizer, [choice.fast_id]) == " an"
    assert decode(tokenizer, [choice.slow_id]) == " a"


def test_borders_inside_the_tags_follow_the_tokenizer(tokenizer, cot_grammar):
    tokens = [tokenizer.id_to_token(i) for i in cot_grammar.opening[:3]]
    assert tokens == ["<th", "ink", ">Ċ"]


def test_positions_count_what_the_cache_must_hold(cot_grammar, tokenizer, answer_format):
    whole = encode(tokenizer, render(answer_format.fast, actions=PLAN))
    behind = encode(tokenizer, "\n</answer>")
    assert cot_grammar.positions("fast") == len(whole) - len(behind) - 1


@pytest.mark.parametrize(
    "reasoning", ["Ahead, a bus.", "1) x\n2) y", '- "why?"', "日本。", "a  \n"]
)
def test_a_slow_answer_closes_by_itself(tokenizer, answer_format, free, head, reasoning):
    whole = encode(tokenizer, render(answer_format.slow, reasoning=reasoning, actions=PLAN))
    assert whole[: len(head)] == head
    free_ids = []
    for token_id in whole[len(head) :]:
        if free.closes(free_ids, token_id):
            break
        free_ids.append(token_id)
    after = whole[len(head) + len(free_ids) :]
    assert after[0] == free.closer_id
    assert after[1 : 1 + len(free.closing)] == free.closing
    assert after[1 + len(free.closing)] == 151665 + 7
    assert free.text(free_ids) == reasoning


def test_the_closer_ends_reasoning_only_where_it_opens_a_line(tokenizer, free):
    word = encode(tokenizer, "see the")
    assert not free.closes(word, free.closer_id)
    assert free.closes(encode(tokenizer, "see the\n"), free.closer_id)
    assert free.closes(encode(tokenizer, "see.\n"), free.closer_id)
    assert not free.closes(encode(tokenizer, "see.\n"), word[0])
    assert free.closes((), free.closer_id)


def test_only_text_tokens_are_legal_in_reasoning(tokenizer, free, action_space):
    assert free.legal.shape == (action_space.action_start_id + action_space.num_actions,)
    assert free.legal[:151643].all()
    assert not free.legal[151643:].any()
    np.testing.assert_array_equal(free.legal_ids, np.flatnonzero(free.legal))


@pytest.fixture(scope="module")
def check_cut(tokenizer, free, head):
    """Cut and check: the text stays, the closing is whole, cache and actions are not at risk."""

    def check(ids):
        kept, closing = free.cut(ids)
        text = free.text(ids)
        begun = text or decode(tokenizer, ids).startswith("\n")
        close = free.close_text if begun else free.close_text[1:]  # the opening's line end serves
        expected = decode(tokenizer, head) + text + close
        assert decode(tokenizer, (*head, *ids[:kept], *closing)) == expected
        forced_ids = (free.closer_id, *free.closing)
        assert closing[-len(forced_ids) :] == forced_ids
        assert free.closes((*ids[:kept], *closing[: -len(forced_ids)]), free.closer_id)
        assert free.legal[list(closing)].all()
        assert kept + len(closing) <= len(ids) + free.positions
        assert len(ids) - kept <= MAX_ROLLBACK + 3
        return kept, closing

    return check


@pytest.fixture(scope="module")
def text_ids(tokenizer, free):
    """Encode text into legal reasoning ids (a function: hypothesis prints no tokenizer)."""
    return lambda text: [i for i in encode(tokenizer, text) if free.legal[i]]


texts = st.one_of(
    st.text(),
    st.text(alphabet="aé日🚗👩‍🚀 .\n</-1\"'\t\r", max_size=40),
    st.lists(
        st.sampled_from(
            ["The car ", "slows", ".", "\n", "\n\n", " ", "日本", "🚗", "</", "e\u0301"]
        )
    ).map("".join),
)


@quick
@example(text="<|im_end|>", end=100)
@example(text="go <action_5>", end=100)
@example(text="</tool_call>\n", end=100)
@given(text=texts, end=st.integers(0, 60))
def test_cutting_text_anywhere_keeps_it(check_cut, text_ids, text, end):
    check_cut(text_ids(text)[:end])


@quick
@example(ids=[172])
@example(ids=[119349])  # a token that the tokenizer itself never writes: encoded, it takes more
@given(ids=st.lists(st.one_of(st.integers(0, 255), st.integers(0, 151642)), max_size=30))
def test_cutting_arbitrary_tokens_keeps_their_text(check_cut, ids):
    check_cut(ids)


@pytest.mark.parametrize(
    "pieces", ["</ tool _call >", "< tool _call >", "< action _ 5 >", "< | im _end | >"]
)
def test_text_that_spells_an_added_token_does_not_become_one(tokenizer, free, check_cut, pieces):
    spelled = [i for piece in pieces.split() for i in encode(tokenizer, piece)]
    assert len(encode(tokenizer, pieces.replace(" ", ""))) == 1
    assert check_cut(spelled) == (len(spelled), free.joined)


def test_text_outside_normal_form_is_not_changed(tokenizer, check_cut):
    decomposed = [*encode(tokenizer, "cafe"), *encode(tokenizer, "\u0301")]
    assert decode(tokenizer, decomposed) == "cafe\u0301"
    check_cut(decomposed)


def test_a_cut_reads_as_the_tokenizer_writes(tokenizer, free, answer_format, head):
    ids = list(encode(tokenizer, "1) A bus stands ahead.\n2) It is raining; wait. 3) Go"))
    for end in range(1, len(ids) + 1):
        kept, closing = free.cut(ids[:end])
        text = free.text(ids[:end])
        whole = encode(tokenizer, render(answer_format.slow, reasoning=text, actions=PLAN))
        got = (*head, *ids[:kept], *closing)
        assert got == whole[: len(got)]
        assert end - kept <= 1
    full_stop = ids[: ids.index(encode(tokenizer, ".\n")[0])] + list(encode(tokenizer, "."))
    kept, closing = free.cut(full_stop)
    assert (kept, tokenizer.id_to_token(closing[0])) == (len(full_stop) - 1, ".Ċ")


def test_half_a_character_is_dropped(tokenizer, free, check_cut):
    ids = encode(tokenizer, "see 𓂀")
    assert len(ids) > 3
    check_cut(ids[:-1])
    assert free.text(ids[:-1]) == "see "
    assert free.text(ids) == "see 𓂀"


def test_a_long_uncommon_spelling_is_joined_instead_of_rolled_back(tokenizer, free, check_cut):
    spelled = [i for character in "reflecting deeply" for i in encode(tokenizer, character)]
    kept, closing = check_cut(spelled)
    assert (kept, closing) == (len(spelled), free.joined)


def compiled(tokenizer, answer_format, action_space, **changes):
    answer = AnswerFormat(**(dict(answer_format) | changes))
    use_cot = "direct" not in changes
    return compile_answer(
        tokenizer, answer, use_cot=use_cot, actions=action_space, end_token_id=END
    )


CLOSE = "\n</think>\n"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"direct": ("go",)}, r"direct answer must have the slots \('actions',\)"),
        ({"direct": ("go", ACTIONS, ACTIONS)}, "direct answer must have the slots"),
        ({"direct": ("e\u0301", ACTIONS)}, "form NFC"),
        ({"direct": ("<action_3> ", ACTIONS)}, "10 action tokens in a row"),
        ({"slow": ("x", ACTIONS, REASONING)}, "slow answer must have the slots"),
        ({"slow": ("Hard: ", REASONING, CLOSE, ACTIONS)}, "must end where a token ends"),
        ({"slow": ("Hard.\n", REASONING, "</think>", ACTIONS)}, "must begin with a line end"),
        ({"slow": ("Hard.\n", REASONING, "\nDone ", ACTIONS)}, "must begin with a line end"),
        ({"slow": ("Hard.\n", REASONING, "\n<///>", ACTIONS)}, "'</' as a token of its own"),
        (
            {
                "fast": ("A scene.\nEasy.", CLOSE, ACTIONS),
                "slow": ("A scene.\n", REASONING, CLOSE, ACTIONS),
            },
            "must differ in a token before the reasoning",
        ),
    ],
)
def test_templates_that_do_not_compile_are_refused(
    tokenizer, answer_format, action_space, changes, message
):
    with pytest.raises(RecipeError, match=message):
        compiled(tokenizer, answer_format, action_space, **changes)


def test_sentences_may_differ_in_more_than_the_choice(tokenizer, answer_format, action_space):
    slow = ("<think>\nNot easy at all; let me see:\n", REASONING, CLOSE, ACTIONS, " end")
    grammar = compiled(tokenizer, answer_format, action_space, slow=slow)
    assert decode(tokenizer, grammar.opening) == "<think>\n"
    ids = (*grammar.opening, grammar.choice.slow_id, *grammar.branches["slow"][0].ids)
    assert decode(tokenizer, ids) == slow[0]
    ends = [decode(tokenizer, grammar.branches[mode][-1].ids) for mode in ("fast", "slow")]
    assert ends == ["\n</answer><|im_end|>", " end<|im_end|>"]


@pytest.mark.parametrize(
    ("start", "count"), [(151664, 2048), (151664, 2049), (151665, 2047), (151665, 2049)]
)
def test_action_tokens_elsewhere_are_refused(tokenizer, answer_format, start, count):
    with pytest.raises(CheckpointError, match=r"<action_0>.*tokens.action_start_id"):
        compiled(tokenizer, answer_format, ActionSpace(action_start_id=start, num_actions=count))


def test_a_tokenizer_that_is_not_byte_level_is_refused(answer_format, action_space):
    with pytest.raises(CheckpointError, match="byte-level BPE"):
        compiled(Tokenizer(models.BPE()), answer_format, action_space)


def test_a_small_vocabulary_without_merges_across_borders_compiles(answer_format):
    """Single bytes and `</`: a line end is a token of its own, a special one is in the base."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: i for i, token in enumerate([*alphabet, "</", "<|im_start|>"])}
    tokenizer = Tokenizer(models.BPE(vocab, [("<", "/")]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    end = len(vocab)
    tokenizer.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    tokenizer.add_tokens([AddedToken(f"<action_{i}>", special=False) for i in range(4)])
    space = ActionSpace(action_start_id=end + 1, num_actions=4, num_poses=6)
    grammar = compile_answer(
        tokenizer, answer_format, use_cot=True, actions=space, end_token_id=end
    )
    free = grammar.branches["slow"][1]
    ids = encode(tokenizer, "slow")
    assert decode(tokenizer, [grammar.choice.fast_id]) == "n"
    assert decode(tokenizer, [grammar.choice.slow_id]) == " "
    assert free.cut(ids) == (4, free.joined)
    assert free.legal.sum() == 257
