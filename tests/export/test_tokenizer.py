from __future__ import annotations

import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from autovla_rt.errors import CheckpointError
from autovla_rt.export.tokenizer import end_token_ids, load_tokenizer

ACTIONS = {"action_start_id": 151665, "num_actions": 2048}


@pytest.fixture(scope="module")
def base(qwen_folder) -> Tokenizer:
    """The base model's tokenizer with the action tokens added."""
    return load_tokenizer(qwen_folder, **ACTIONS, add_action_tokens=True)


@pytest.fixture(scope="module")
def trained_folder(base, tmp_path_factory) -> Path:
    """A folder saved after training: its tokenizer.json has the action tokens."""
    folder = tmp_path_factory.mktemp("trained")
    base.save(str(folder / "tokenizer.json"))
    return folder


def refusal(folder: Path, **settings) -> str:
    with pytest.raises(CheckpointError) as caught:
        load_tokenizer(folder, **{**ACTIONS, "add_action_tokens": False, **settings})
    return str(caught.value)


def test_adds_the_actions_at_the_end_of_the_vocabulary(base):
    assert base.token_to_id("<action_0>") == 151665
    assert base.token_to_id("<action_2047>") == 153712
    assert base.get_vocab_size() == 153713


@pytest.mark.parametrize(
    "text",
    [
        "The final output action is: <action_0><action_2047> <action_17>\n</answer>",
        "<action_12>9> <action_2048> <action_-1> <|im_end|>",
        "combining: <action_5\u0338> <action_5>\u0338 caf\u0065\u0301",
    ],
)
def test_encodes_as_transformers_does_with_the_official_call(qwen_folder, base, text):
    transformers = pytest.importorskip("transformers")
    official = transformers.AutoTokenizer.from_pretrained(qwen_folder)
    official.add_tokens([f"<action_{i}>" for i in range(2048)], special_tokens=False)
    assert base.encode(text).ids == official(text).input_ids


def test_action_tokens_are_not_special(base):
    ids = base.encode("<action_3>").ids
    assert base.decode(ids, skip_special_tokens=True) == "<action_3>"


def test_reads_a_trained_tokenizer_as_it_is(trained_folder, base):
    for add_action_tokens in (False, True):
        tokenizer = load_tokenizer(trained_folder, **ACTIONS, add_action_tokens=add_action_tokens)
        assert tokenizer.get_vocab() == base.get_vocab()


def test_a_base_tokenizer_says_what_to_pass(qwen_folder):
    message = refusal(qwen_folder)
    assert "2048 of 2048 action tokens are not there, <action_0> first" in message
    assert "--add-action-tokens" in message


def test_actions_elsewhere_are_refused(qwen_folder, trained_folder):
    message = refusal(qwen_folder, add_action_tokens=True, action_start_id=151666)
    assert "<action_0> has id 151665, expected 151666" in message
    assert "<action_0> has id 151665, expected 151664" in refusal(
        trained_folder, action_start_id=151664
    )


def test_another_number_of_actions_is_refused(trained_folder):
    assert "1 of 2049 action tokens are not there, <action_2048> first" in refusal(
        trained_folder, num_actions=2049
    )
    assert "<action_2047> follows the last of 2047" in refusal(trained_folder, num_actions=2047)


def test_swapped_actions_are_refused(trained_folder, tmp_path):
    text = (trained_folder / "tokenizer.json").read_text()
    swapped = text.replace('"<action_7>"', '"<other>"').replace('"<action_8>"', '"<action_7>"')
    (tmp_path / "tokenizer.json").write_text(swapped.replace('"<other>"', '"<action_8>"'))
    assert "<action_7> has id 151673, expected 151672" in refusal(tmp_path)


def test_a_tokenizer_of_another_model_is_refused(trained_folder, tmp_path):
    text = (trained_folder / "tokenizer.json").read_text()
    (tmp_path / "tokenizer.json").write_text(text.replace("<|video_pad|>", "<|movie_pad|>"))
    assert "no token <|video_pad|>" in refusal(tmp_path)


@pytest.mark.parametrize("text", ["", "{}", "not json"])
def test_an_unreadable_tokenizer_is_refused(tmp_path, text):
    (tmp_path / "tokenizer.json").write_text(text)
    assert "not a tokenizer.json" in refusal(tmp_path)


def test_a_missing_tokenizer_is_refused(tmp_path):
    assert "no such file" in refusal(tmp_path)


class TestEndTokens:
    def test_come_from_the_generation_config(self, qwen_folder, base):
        assert end_token_ids(qwen_folder, base) == (151645, 151643)

    def test_come_from_the_tokenizer_without_it(self, trained_folder, base):
        assert end_token_ids(trained_folder, base) == (151645, 151643)

    def test_may_be_one_number(self, base, tmp_path):
        (tmp_path / "generation_config.json").write_text('{"eos_token_id": 151645}')
        assert end_token_ids(tmp_path, base) == (151645,)

    @pytest.mark.parametrize("stated", [None, 2, [2], [151645, 999999], [151645, "a"], [True]])
    def test_must_be_those_of_the_tokenizer(self, base, tmp_path, stated):
        (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": stated}))
        with pytest.raises(CheckpointError, match="eos_token_id is"):
            end_token_ids(tmp_path, base)


def test_the_end_of_a_turn_comes_first_whatever_the_files_order(qwen_folder, tmp_path):
    tokenizer = load_tokenizer(qwen_folder, **ACTIONS, add_action_tokens=True)
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [151643, 151645]}')
    assert end_token_ids(tmp_path, tokenizer) == (151645, 151643)
