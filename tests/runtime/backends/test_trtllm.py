"""What a TensorRT-LLM engine is given, on the miniature; the engine itself is not run."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest
from demo_engine import FRAMES

from autovla_rt.errors import DependencyError
from autovla_rt.runtime.backends.trtllm import GrammarLogits, load_engine, prompt_table
from autovla_rt.runtime.planner import Planner
from autovla_rt.runtime.sampling import Sampler, Sampling
from autovla_rt.runtime.scene import read_frames_dir
from autovla_rt.runtime.trace import Trace

torch = pytest.importorskip("torch")


@pytest.fixture(scope="module")
def planner(demo):
    return Planner.load(demo.engine)


@pytest.fixture(scope="module")
def prompted(planner):
    return planner.encode(read_frames_dir(FRAMES))


def test_ids_of_the_table_stand_where_the_features_stand(planner):
    manifest, prompt = planner.bundle.manifest, planner.bundle.prompt()
    vocabulary, hidden = (
        getattr(manifest.geometry.language, of) for of in ("vocab_size", "hidden_size")
    )
    rng = np.random.default_rng(0)
    # Numbers that float16 holds, each camera's of its own.
    features = {
        video.camera: rng.integers(-99, 99, (video.count, hidden)).astype(np.float32)
        for video in prompt.videos
    }
    prompt_ids = np.array([*prompt.prefix_ids, 5, 6, 7], np.int64)
    before = prompt_ids.copy()
    ids, table = prompt_table(prompt, prompt_ids, features, vocabulary)
    assert (ids.dtype, table.dtype) == (np.int32, np.float16)
    assert len(table) == sum(video.count for video in prompt.videos)
    np.testing.assert_array_equal(prompt_ids, before)
    embeddings = rng.standard_normal((vocabulary, hidden)).astype(np.float32)
    expected = embeddings[prompt_ids]
    for video in prompt.videos:
        expected[video.start : video.start + video.count] = features[video.camera]
    np.testing.assert_array_equal(np.concatenate([embeddings, table])[ids], expected)


def masked(planner, prompted, processor, request):
    """Decode as TensorRT-LLM does: full vocabulary, processor, the best one, a token at a time."""
    language, end = planner._language, planner.bundle.manifest.end_token_ids[0]
    language.truncate(language.prefix_length)
    written = prompted.ids.tolist()
    hidden = language.extend(prompted.embeddings[language.length :], 1)
    while written[-1] != end:
        logits = torch.from_numpy(language.logits(hidden)).reshape(1, 1, -1)
        processor(request, logits, [written], None, None)
        written.append(int(logits[0, 0].argmax()))
        hidden = language.extend(language.embed(np.array(written[-1:])), 1)
    return tuple(written[len(prompted.ids) :])


@pytest.mark.parametrize("mode", ["fast", "slow", "auto"])
def test_under_the_processor_the_answer_is_the_planners(planner, prompted, mode):
    found = planner.answer(prompted, sampler=Sampler(Sampling()), trace=Trace(), mode=mode)
    assert found.finish_reason == "stop"
    processor = GrammarLogits(planner._grammar, planner.bundle.manifest.kv_capacity, mode)
    assert masked(planner, prompted, processor, 7) == found.output_ids
    if mode == "slow":
        assert found.thinking_tokens > 5
        assert masked(planner, prompted, processor, 8) == found.output_ids  # a second request


@pytest.mark.parametrize("spare", [0, 4])
def test_the_engines_length_leaves_room_for_the_plan(planner, prompted, spare):
    grammar = planner._grammar
    end = len(grammar.branches["slow"][-1].ids)
    whole = len(prompted.ids) + grammar.positions("slow") + 1 + end
    processor = GrammarLogits(grammar, whole + spare, "slow")
    answer = masked(planner, prompted, processor, 1)
    assert len(answer) <= whole + spare - len(prompted.ids)
    actions = [token for token in answer if token >= grammar.action_ids[0]]
    assert len(actions) == planner.bundle.manifest.actions.num_poses


def test_every_beam_has_a_mask_of_its_own(cot_grammar):
    processor = GrammarLogits(cot_grammar, 4096)
    opening, choice = list(cot_grammar.opening), cot_grammar.choice
    logits = torch.zeros(1, 1, len(cot_grammar.action_ids) + cot_grammar.action_ids[0])
    processor(3, logits, [[1, 2]], None, None)
    assert logits.isfinite().nonzero()[:, 2].tolist() == opening[:1]
    logits = torch.ones(1, 2, logits.shape[2])
    beams = [[1, 2, *opening, choice.fast_id], [1, 2, *opening]]
    processor(3, logits, beams, None, None)
    fast, undecided = (row.isfinite().nonzero()[:, 0].tolist() for row in logits[0])
    assert fast == [cot_grammar.branches["fast"][0].ids[0]]
    assert undecided == sorted([choice.fast_id, choice.slow_id])
    assert logits[0, 1, choice.fast_id] == 1


def test_another_request_begins_a_new_answer(cot_grammar):
    processor, opening = GrammarLogits(cot_grammar, 4096), cot_grammar.opening
    for request, prompt in ((1, [5]), (2, [5, opening[0], 7])):
        logits = torch.zeros(1, 1, len(cot_grammar.action_ids) + cot_grammar.action_ids[0])
        processor(request, logits, [prompt], None, None)
        assert logits.isfinite().nonzero()[:, 2].tolist() == [opening[0]]


def test_without_tensorrt_llm_it_is_said_what_to_install(tmp_path, cot_grammar):
    if importlib.util.find_spec("tensorrt_llm") is not None:
        pytest.skip("tensorrt_llm is installed")
    with pytest.raises(DependencyError, match=r"pip install 'autovla-rt\[trtllm\]'"):
        load_engine(tmp_path, GrammarLogits(cot_grammar, 4096))
