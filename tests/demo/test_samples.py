from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file
from tokenizers import Tokenizer

from autovla_rt.config import CAMERAS, ActionSpace, Camera
from autovla_rt.demo.batch import FIRST_ANSWER, PADDING, PROMPT, SECOND_ANSWER
from autovla_rt.demo.drivers import request_of
from autovla_rt.demo.narrator import narrate
from autovla_rt.demo.render import render_moments
from autovla_rt.demo.samples import GRID, HEIGHT, WIDTH, SampleMaker, SceneSource, pack
from autovla_rt.demo.tokenizer import RECIPE
from autovla_rt.export.model_config import read_geometry, read_preprocessing
from autovla_rt.export.prompt import compile_prompt
from autovla_rt.export.recipe import read_recipe
from autovla_rt.export.training_config import read_training_config
from autovla_rt.kernels.contour import roll_out
from autovla_rt.runtime.frames import FramePreprocessor
from autovla_rt.runtime.grammar import compile_answer
from autovla_rt.runtime.prompt import PromptEncoder

CHECKPOINT = Path(__file__).parents[2] / "demo" / "checkpoint"
BASE = CHECKPOINT / "base"


@pytest.fixture(scope="module")
def corners():
    return load_file(CHECKPOINT / "codebook.safetensors")["corners"]


@pytest.fixture(scope="module")
def maker(corners):
    tokenizer = Tokenizer.from_file(str(BASE / "tokenizer.json"))
    return SampleMaker(tokenizer, corners, read_recipe(RECIPE), read_geometry(BASE))


def test_training_sees_the_prompt_and_patches_that_the_runtime_makes(maker, scenes):
    scene = scenes[0]
    sample = maker.sample(scene)
    geometry, config = read_geometry(BASE), read_training_config(CHECKPOINT / "config.yaml")
    cameras = [Camera(name=name, grid=GRID) for name in CAMERAS]
    prompt = compile_prompt(
        maker.tokenizer,
        read_recipe(RECIPE).prompt_cot,
        cameras,
        geometry,
        add_vision_id=False,
    )
    request = request_of(scene.now, render_moments(scene.moments, WIDTH, HEIGHT))
    assert np.array_equal(sample.prompt, PromptEncoder(prompt, maker.tokenizer).ids(request))
    preprocessing = read_preprocessing(BASE, config.min_pixels, config.max_pixels)
    small = preprocessing.model_copy(update={"min_pixels": WIDTH * HEIGHT})  # no enlarging
    preprocessor = FramePreprocessor(small, geometry.vision)
    rows = [preprocessor.patches(request.frames[c.name], c) for c in cameras]
    mean, std = np.array(preprocessing.image_mean), np.array(preprocessing.image_std)
    levels = sample.patches.reshape(6, 112, 3, -1) / 255
    normalised = (levels - mean[:, None]) / std[:, None]
    assert np.allclose(normalised.reshape(6, 112, -1), np.concatenate(rows), atol=1e-5)


def test_answers_are_those_that_the_grammar_allows(maker, scenes):
    grammar = compile_answer(
        maker.tokenizer,
        read_recipe(RECIPE).answer,
        use_cot=True,
        actions=actions(maker),
        end_token_id=maker.tokenizer.token_to_id("<|im_end|>"),
    )
    for scene in scenes[:10]:
        answers = maker.sample(scene).answers
        choices = grammar.choice.fast_id, grammar.choice.slow_id
        for answer, choice in zip(answers, choices, strict=True):
            opening = len(grammar.opening)
            assert tuple(answer.ids[:opening]) == grammar.opening
            assert answer.ids[opening] == choice
            ids = grammar.actions.action_start_id
            assert (answer.ids >= ids).sum() == 10
            assert np.all(answer.weights[answer.ids >= ids] == 1.0)


def actions(maker):
    return ActionSpace(action_start_id=maker.tokenizer.token_to_id("<action_0>"), num_actions=2048)


def test_the_decision_is_taught_by_the_right_answer_alone(maker, scenes):
    for scene in scenes[:10]:
        for answer in maker.sample(scene).answers:
            text = [maker.tokenizer.decode([int(i)]) for i in answer.ids]
            at = next(i for i, word in enumerate(text) if word in (" clear", " tricky"))
            right = (text[at] == " tricky") == scene.complex
            assert answer.weights[at] == (1.0 if right else 0.0)


def test_without_reasoning_every_scene_is_answered_fast(maker, corners, scenes):
    bare = SampleMaker(
        maker.tokenizer, corners, read_recipe(RECIPE), read_geometry(BASE), reasoning=False
    )
    assert {scene.complex for scene in scenes[:10]} == {True, False}
    for scene in scenes[:10]:
        (answer,) = bare.sample(scene).answers
        text = [maker.tokenizer.decode([int(i)]) for i in answer.ids]
        assert answer.weights[text.index(" clear")] == 1.0
        np.testing.assert_array_equal(answer.ids, maker.sample(scene).answers[0].ids)


def test_actions_follow_the_expert_and_the_reasoning_is_its_narration(
    maker, corners, complex_scenes
):
    start = actions(maker).action_start_id
    for scene in complex_scenes[:8]:
        slow = maker.sample(scene).answers[1]
        chosen = slow.ids[slow.ids >= start] - start
        error = np.abs(roll_out(corners[chosen])[:, :2] - scene.trajectory[:, :2])
        assert error.max() < 0.35
        assert narrate(scene) in maker.tokenizer.decode(slow.ids.tolist())


def test_packed_answers_stand_behind_one_prompt(maker, scenes):
    samples = [maker.sample(scene) for scene in scenes[:4]]
    batch = pack(samples, maker)
    length = batch.token_ids.shape[1]
    for row, sample in enumerate(samples):
        prompt, (fast, slow) = len(sample.prompt), (len(answer.ids) for answer in sample.answers)
        kinds = [PROMPT] * prompt + [FIRST_ANSWER] * fast + [SECOND_ANSWER] * slow
        kinds += [PADDING] * (length - len(kinds))
        assert batch.segments[row].tolist() == kinds
        first, second = (batch.positions[:, row, at] for at in (prompt, prompt + fast))
        assert np.array_equal(first, second)
        assert np.array_equal(first, batch.positions[:, row, prompt - 1] + 1)


def test_every_target_follows_the_position_that_predicts_it(maker, scenes):
    samples = [maker.sample(scene) for scene in scenes[:4]]
    batch = pack(samples, maker)
    length = batch.token_ids.shape[1]
    for at, target in zip(batch.predict_from, batch.targets, strict=True):
        row, column = divmod(int(at), length)
        assert batch.segments[row, column] in (PROMPT, batch.segments[row, column + 1])
        following = {int(batch.token_ids[row, column + 1])}
        if column == len(samples[row].prompt) - 1:
            following.add(int(samples[row].answers[1].ids[0]))
        assert int(target) in following


def test_steps_have_scenes_of_their_own_and_the_same_ones_every_time(maker):
    source = SceneSource(maker, batches=2, scenes_per_batch=2)
    (first, second), (again, _), (other, _) = (source.batch(step) for step in (3, 3, 4))
    assert np.array_equal(first.patches, again.patches)
    assert np.array_equal(first.targets, again.targets)
    assert not np.array_equal(first.patches, other.patches)
    assert not np.array_equal(first.patches, second.patches)
    assert (first.segments == SECOND_ANSWER).any(axis=1).all()
