import hashlib
import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer
from transformers import AutoTokenizer, Qwen2_5_VLForConditionalGeneration

from autovla_rt.config import CAMERAS, Camera
from autovla_rt.export.model_config import read_geometry, read_preprocessing
from autovla_rt.export.training_config import read_training_config
from autovla_rt.kernels import contour
from autovla_rt.kernels.resize import video_grid
from autovla_rt.runtime.actions import Codebook
from autovla_rt.runtime.frames import FramePreprocessor
from autovla_rt.runtime.scene import read_frames_dir

REPOSITORY = Path(__file__).parents[2]
SCENE = REPOSITORY / "calib_data" / "demo"
SCRIPT = REPOSITORY / "demo" / "miniature.py"
GRID = (2, 8, 14)


def write(out, seed, **environment):
    return subprocess.run(
        [sys.executable, SCRIPT, out, "--seed", str(seed)],
        env={**os.environ, **environment},
        check=True,
        capture_output=True,
        text=True,
    ).stdout


def digests(folder):
    return {
        str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in folder.rglob("*")
        if file.is_file()
    }


@pytest.fixture(scope="module")
def miniature(tmp_path_factory):
    out = tmp_path_factory.mktemp("miniature")
    assert "RANDOM weights" in write(out, 0)
    return out


@pytest.fixture(scope="module")
def model(miniature):
    loaded, report = Qwen2_5_VLForConditionalGeneration.from_pretrained(
        miniature / "base", dtype=torch.float32, output_loading_info=True
    )
    assert not any(report.values()), report
    return loaded.eval()


@pytest.fixture(scope="module")
def tokenizer(miniature):
    return Tokenizer.from_file(str(miniature / "base" / "tokenizer.json"))


@pytest.fixture(scope="module")
def auto_tokenizer(miniature):
    return AutoTokenizer.from_pretrained(miniature / "base")


@pytest.fixture(scope="module")
def geometry(miniature):
    return read_geometry(miniature / "base")


@pytest.fixture(scope="module")
def config(miniature):
    return read_training_config(miniature / "config.yaml")


def test_equal_seeds_give_equal_bytes(miniature, tmp_path):
    write(tmp_path, 0, PYTHONHASHSEED="7", TOKENIZERS_PARALLELISM="false")
    assert digests(tmp_path) == digests(miniature)


def test_another_seed_gives_another_model(miniature, tmp_path):
    write(tmp_path, 1)
    other, first = digests(tmp_path), digests(miniature)
    assert set(other) == set(first)
    for name in ("base/model.safetensors", "codebook.safetensors"):
        assert other[name] != first[name]


def test_transformers_reads_the_geometry(model, geometry):
    text, vision = model.config.text_config, model.config.vision_config
    for key in ("hidden_size", "num_hidden_layers", "intermediate_size", "vocab_size"):
        assert getattr(text, key) == getattr(geometry.language, key)
    assert tuple(text.rope_scaling["mrope_section"]) == geometry.language.mrope_section
    for key in ("depth", "hidden_size", "intermediate_size", "window_size", "tokens_per_second"):
        assert getattr(vision, key) == getattr(geometry.vision, key)
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert model.generation_config.repetition_penalty == 1.05


def test_weights_are_stored_in_bfloat16(model):
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, weight.bfloat16().float()), name


def prompt_and_pixels(miniature, geometry, config, auto_tokenizer, frames):
    base = miniature / "base"
    preprocessing = read_preprocessing(base, config.min_pixels, config.max_pixels)
    preprocessor = FramePreprocessor(preprocessing, geometry.vision)
    rows = [
        preprocessor.patches(frames[name], Camera(name=name, grid=GRID)).reshape(-1, 1176)
        for name in CAMERAS
    ]
    video = "<|vision_start|>" + "<|video_pad|>" * (GRID[0] * 4 * 7) + "<|vision_end|>"
    text = f"<|im_start|>user\nRoute: keep forward.{video * 3}<|im_end|>\n<|im_start|>assistant\n"
    return {
        "input_ids": auto_tokenizer(text, return_tensors="pt").input_ids,
        "pixel_values_videos": torch.from_numpy(np.concatenate(rows)),
        "video_grid_thw": torch.tensor([GRID] * len(CAMERAS)),
        "second_per_grid_ts": torch.tensor([1.0] * len(CAMERAS)),
    }


def test_logits_are_not_flat_and_the_plan_depends_on_the_frames(
    model, miniature, geometry, config, auto_tokenizer
):
    drawn = read_frames_dir(SCENE).frames
    black = {name: [np.zeros((252, 448, 3), np.uint8)] * 4 for name in CAMERAS}
    plans = []
    for frames in (drawn, black):
        inputs = prompt_and_pixels(miniature, geometry, config, auto_tokenizer, frames)
        with torch.no_grad():
            assert model(**inputs).logits.std(dim=-1).min() > 1.5
            answer = model.generate(
                **inputs,
                max_new_tokens=10,
                do_sample=False,
                repetition_penalty=1.0,
                temperature=None,
                suppress_tokens=list(range(config.action_start_id)),
            )
        plans.append(answer[0, inputs["input_ids"].shape[1] :].tolist())
    assert plans[0] != plans[1]
    assert all(len(set(plan)) >= 5 for plan in plans)


def test_actions_are_the_last_ids_and_plain_text(tokenizer, auto_tokenizer, geometry, config):
    assert config.action_start_id + 2048 == geometry.language.vocab_size
    assert tokenizer.get_vocab_size() == geometry.language.vocab_size
    ids = [tokenizer.token_to_id(f"<action_{i}>") for i in range(2048)]
    assert ids == list(range(config.action_start_id, geometry.language.vocab_size))
    assert tokenizer.encode(" <action_12><action_1>").ids[-2:] == [ids[12], ids[1]]
    assert auto_tokenizer.decode(ids[:2], skip_special_tokens=True) == "<action_0><action_1>"


def recipe_texts(node):
    if isinstance(node, str):
        return [node]
    children = node.values() if isinstance(node, dict) else node
    return [text for child in children for text in recipe_texts(child)]


def test_both_tokenizers_agree_on_the_recipe(tokenizer, auto_tokenizer):
    recipe = tomllib.loads((REPOSITORY / "demo" / "recipe.toml").read_text())
    for text in recipe_texts(recipe):
        wrapped = f"<|im_start|>assistant\n{text}<action_7><|im_end|>"
        assert auto_tokenizer(wrapped).input_ids == tokenizer.encode(wrapped).ids
        assert tokenizer.decode(tokenizer.encode(text).ids) == text


@given(st.text())
def test_both_tokenizers_agree_on_any_text(tokenizer, auto_tokenizer, text):
    assert auto_tokenizer(text).input_ids == tokenizer.encode(text).ids


def test_splits_text_as_qwen_does(tokenizer):
    assert tokenizer.encode("gone.\n</think>\n").tokens[-4:] == [".Ċ", "</", "think", ">Ċ"]
    assert tokenizer.encode("12.5").tokens == ["1", "2", ".", "5"]
    for role in ("system", "user", "assistant"):
        assert tokenizer.encode(f"<|im_start|>{role}\n").tokens == ["<|im_start|>", role, "Ċ"]
    assert 1000 <= tokenizer.get_vocab_size(with_added_tokens=False) <= 1500


def test_chat_template_renders_as_qwens(auto_tokenizer):
    messages = [
        {"role": "user", "content": [{"type": "text", "text": "See"}, {"type": "video"}]},
        {"role": "assistant", "content": "ok"},
        {"role": "user", "content": [{"video": "a"}, {"text": " then "}, {"image": "b"}]},
    ]
    video, image = (f"<|vision_start|><|{kind}_pad|><|vision_end|>" for kind in ("video", "image"))
    expected = (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
        "<|im_start|>user\nSee{one}" + video + "<|im_end|>\n"
        "<|im_start|>assistant\nok<|im_end|>\n"
        "<|im_start|>user\n{two}" + video + " then {picture}" + image + "<|im_end|>\n"
        "<|im_start|>assistant\n"
    )

    def render(**options):
        return auto_tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True, **options
        )

    assert render() == expected.format(one="", two="", picture="")
    assert render(add_vision_id=True) == expected.format(
        one="Video 1: ", two="Video 2: ", picture="Picture 1: "
    )
    with_system = [{"role": "system", "content": [{"type": "text", "text": "Drive."}]}]
    assert (
        auto_tokenizer.apply_chat_template(with_system, tokenize=False)
        == "<|im_start|>system\nDrive.<|im_end|>\n"
    )


def test_config_points_at_its_own_files(miniature, config, tokenizer, geometry):
    assert config.use_cot
    assert config.model_folder() == miniature / "base"
    assert config.codebook_file() == miniature / "codebook.safetensors"
    assert "assistant_id: " + str(tokenizer.encode("<|im_start|>assistant").ids) in (
        miniature / "config.yaml"
    ).read_text(encoding="utf-8")
    preprocessing = read_preprocessing(miniature / "base", config.min_pixels, config.max_pixels)
    assert video_grid(1920, 1080, preprocessing, geometry.vision) == GRID


def test_special_ids_of_the_configs_belong_to_the_tokenizer(miniature, tokenizer):
    base = miniature / "base"
    config = json.loads((base / "config.json").read_text())
    assert tokenizer.id_to_token(config["video_token_id"]) == "<|video_pad|>"
    assert tokenizer.id_to_token(config["vision_start_token_id"]) == "<|vision_start|>"
    generation = json.loads((base / "generation_config.json").read_text())
    ends = [tokenizer.id_to_token(i) for i in generation["eos_token_id"]]
    assert ends == ["<|im_end|>", "<|endoftext|>"]


def test_codebook_reconstructs_the_demo_drive(miniature):
    codebook = Codebook.load(miniature / "codebook.safetensors", num_actions=2048)
    steps = contour.corners_to_pose(codebook.corners)
    assert np.abs(steps[0]).max() < 0.05
    drive = np.array(json.loads((SCENE / "scene.json").read_text())["gt_trajectory"])
    chosen = contour.follow(codebook.corners, drive)
    assert np.abs(contour.roll_out(codebook.corners[chosen]) - drive).max() < 0.1
