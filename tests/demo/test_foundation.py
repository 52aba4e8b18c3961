"""The shipped checkpoint's files are those that the code of its foundation writes."""

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer

from autovla_rt.demo import foundation
from autovla_rt.demo.tokenizer import corpus, tokenizer_config, train_tokenizer
from autovla_rt.export.model_config import read_geometry
from autovla_rt.kernels.contour import compose

CHECKPOINT = Path(__file__).parents[2] / "demo" / "checkpoint"
BASE = CHECKPOINT / "base"


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.from_file(str(BASE / "tokenizer.json"))


def shipped(name):
    return json.loads((BASE / name).read_text(encoding="utf-8"))


def plain(value):
    return json.loads(json.dumps(value))


def test_configurations_are_what_the_code_writes(tokenizer):
    geometry = read_geometry(BASE)
    assert shipped("config.json") == plain(foundation.model_config(geometry, tokenizer))
    assert shipped("generation_config.json") == plain(foundation.generation_config(tokenizer))
    assert shipped("preprocessor_config.json") == plain(foundation.preprocessor_config())
    assert shipped("tokenizer_config.json") == plain(tokenizer_config(tokenizer))
    written = foundation.training_config(tokenizer).splitlines()[1:]
    assert (CHECKPOINT / "config.yaml").read_text().splitlines()[1:] == written
    assert geometry.vision == foundation.VISION
    assert geometry.language == foundation.language_geometry(tokenizer.get_vocab_size())


def test_equal_narrations_give_equal_tokenizers():
    lines = list(itertools.islice(foundation.narrations(), 80))
    assert {line.split(":")[0] for line in lines} == {"Scene", "Object", "Intent", "Action"}
    a, b = (train_tokenizer(corpus(lines)).to_str() for _ in range(2))
    assert a == b


def test_no_word_of_the_world_is_cut_into_many_tokens(tokenizer):
    lines = list(itertools.islice(foundation.narrations(), 400))
    tokens = [len(tokenizer.encode(line).ids) for line in lines]
    words = [len(line.replace(",", " ,").replace(".", " .").split()) for line in lines]
    assert sum(tokens) / sum(words) < 1.6


def test_segments_chain_to_the_plans_they_come_from():
    segments = foundation._segments_from(0)
    assert segments.shape == (foundation.CHUNK * 10, 3)
    scene = foundation.record_scene(foundation.FIRST_SEED + 1_000_000)
    pose = np.zeros(3)
    for segment, wanted in zip(segments[:10], scene.trajectory, strict=True):
        pose = compose(pose, segment)
        assert pose == pytest.approx(wanted, abs=1e-9)
