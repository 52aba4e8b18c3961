"""What belongs to a checkpoint is found, and what does not is refused."""

from __future__ import annotations

import re
import shutil
from contextlib import closing

import pytest
from demo_engine import RECIPE, copy_checkpoint, make_demo
from random_checkpoint import write_lightning
from safetensors.numpy import load_file, save_file

from autovla_rt.errors import CheckpointError, CodebookError, RecipeError
from autovla_rt.export.model_config import read_geometry
from autovla_rt.export.open_model import BASE_VOCABULARY, ModelFiles, open_model


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    return make_demo(tmp_path_factory.getbasetemp())


@pytest.fixture
def mine(demo, tmp_path):
    return copy_checkpoint(demo, tmp_path / "mine")


def test_the_config_says_where_everything_is(demo):
    with closing(
        (model := open_model(ModelFiles(demo.base, demo.config, recipe=RECIPE))).checkpoint
    ):
        assert len(model.codebook) == model.actions.num_actions == 2048
        assert model.actions.num_poses * model.actions.dt == 5
        start = model.actions.action_start_id
        assert model.tokenizer.token_to_id("<action_0>") == start
        assert start + 2048 == model.geometry.language.vocab_size
        assert model.use_cot
        assert model.preprocessing.max_pixels == 32 * 28 * 28
        assert model.end_token_ids[0] == model.tokenizer.token_to_id("<|im_end|>")


def test_given_files_come_before_the_configs(mine, tmp_path):
    codebook = tmp_path / "other.safetensors"
    corners = load_file(mine.codebook)["corners"][::-1].copy()
    save_file({"corners": corners}, codebook)
    base = tmp_path / "base2"
    shutil.copytree(mine.base, base)
    text = (base / "preprocessor_config.json").read_text().replace("0.48145466", "0.25")
    (base / "preprocessor_config.json").write_text(text)
    files = ModelFiles(mine.base, mine.config, base=base, codebook=codebook, recipe=RECIPE)
    with closing((model := open_model(files)).checkpoint):
        assert (model.codebook == corners).all()
        assert model.preprocessing.image_mean[0] == 0.25


def test_a_recipe_is_found_in_the_checkout_around_the_config(mine, tmp_path):
    checkout = tmp_path / "checkout"
    fixture = RECIPE.parents[1] / "tests" / "export" / "fixtures" / "checkout"
    shutil.copytree(fixture, checkout)
    (checkout / "config").mkdir()
    for name in ("config.yaml", "codebook.safetensors"):
        shutil.copy(mine.config.with_name(name), checkout / "config" / name)
    model = open_model(ModelFiles(mine.base, checkout / "config" / "config.yaml"))
    with closing(model.checkpoint):
        assert any("autovla.py" in name for name in model.recipe.provenance)


def test_without_a_checkout_the_recipe_must_be_given(demo):
    with pytest.raises(RecipeError, match="Pass --recipe"):
        open_model(ModelFiles(demo.base, demo.config))


@pytest.mark.parametrize("length", [2047, 2049, 1])
def test_a_codebook_of_another_length(mine, length):
    corners = load_file(mine.codebook)["corners"]
    save_file({"corners": corners[[i % 2048 for i in range(length)]]}, mine.codebook)
    with pytest.raises(CodebookError, match=rf"expected 2048 entries[\s\S]*got {length}"):
        open_model(ModelFiles(mine.base, mine.config, recipe=RECIPE))


def test_a_checkpoint_that_is_not_there(demo, tmp_path):
    with pytest.raises(CheckpointError, match="no such file or folder"):
        open_model(ModelFiles(tmp_path / "absent", demo.config, recipe=RECIPE))


def test_a_refused_checkpoint_is_closed(mine):
    def descriptors():
        from pathlib import Path

        return len(list(Path("/proc/self/fd").iterdir()))

    before = descriptors()
    for _ in range(5):
        with pytest.raises(RecipeError):
            open_model(ModelFiles(mine.base, mine.config))
    assert descriptors() == before


def test_a_base_model_that_was_never_trained_on_actions(mine, tmp_path):
    geometry = read_geometry(mine.base)
    language = geometry.language.model_copy(update={"vocab_size": BASE_VOCABULARY})
    checkpoint = tmp_path / "untrained.ckpt"
    write_lightning(checkpoint, geometry.model_copy(update={"language": language}), seed=0)
    config = mine.config.read_text().replace("action_start_id: 1522", "action_start_id: 151665")
    mine.config.write_text(config)
    with pytest.raises(CheckpointError, match="never trained on actions"):
        open_model(ModelFiles(checkpoint, mine.config, recipe=RECIPE))


def test_an_action_start_beyond_the_vocabulary(mine):
    text = mine.config.read_text()
    config = re.sub(r"action_start_id: \d+", "action_start_id: 151665", text)
    mine.config.write_text(config)
    with pytest.raises(CheckpointError, match=r"2\d{3} rows, but action_start_id 151665 \+ 2048"):
        open_model(ModelFiles(mine.base, mine.config, recipe=RECIPE))


@pytest.mark.parametrize("wanted", [False, True])
def test_video_labels_are_a_switch(demo, wanted):
    files = ModelFiles(demo.base, demo.config, recipe=RECIPE, add_vision_id=wanted)
    with closing((model := open_model(files)).checkpoint):
        assert model.recipe.add_vision_id is wanted


def test_a_config_that_the_checkpoint_was_not_trained_with(mine, tmp_path):
    checkpoint = tmp_path / "trained.ckpt"
    stated = {"config": {"model": {"use_cot": False, "trajectory": {"interval_length": 0.1}}}}
    geometry = read_geometry(mine.base)
    write_lightning(checkpoint, geometry, seed=0, hyper_parameters=stated)
    with pytest.raises(CheckpointError, match=r"(?s)use_cot.*interval_length"):
        open_model(ModelFiles(checkpoint, mine.config, recipe=RECIPE))
