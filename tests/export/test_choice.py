"""The tokens that decide are the ones that the runtime's grammar finds."""

import pytest
from demo_engine import CHECKPOINT, RECIPE
from tokenizers import Tokenizer

from autovla_rt.config import ActionSpace, AnswerFormat, Slot
from autovla_rt.errors import RecipeError
from autovla_rt.export.choice import choice_ids
from autovla_rt.export.recipe import read_recipe
from autovla_rt.runtime.grammar import compile_answer


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.from_file(str(CHECKPOINT / "base" / "tokenizer.json"))


def test_they_are_the_grammars_choice(tokenizer):
    start = tokenizer.token_to_id("<action_0>")
    actions = ActionSpace(
        action_start_id=start, num_actions=tokenizer.get_vocab_size() - start, num_poses=10
    )
    answer = read_recipe(RECIPE).answer
    end = tokenizer.token_to_id("<|im_end|>")
    grammar = compile_answer(tokenizer, answer, use_cot=True, actions=actions, end_token_id=end)
    assert choice_ids(tokenizer, answer) == (grammar.choice.fast_id, grammar.choice.slow_id)


def test_answers_that_begin_alike_are_refused(tokenizer):
    fast = ("same ", Slot(slot="actions"))
    answer = AnswerFormat(direct=fast, fast=fast, slow=fast)
    with pytest.raises(RecipeError, match="must differ in a token"):
        choice_ids(tokenizer, answer)
