"""The checkpoint that is shipped: its files, its tokenizer, and that it answers in format."""

import json
import re
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
from autovla_rt.export.prompt import compile_prompt
from autovla_rt.export.recipe import read_recipe
from autovla_rt.export.training_config import read_training_config
from autovla_rt.kernels import contour
from autovla_rt.kernels.resize import video_grid
from autovla_rt.runtime.actions import Codebook
from autovla_rt.runtime.frames import FramePreprocessor
from autovla_rt.runtime.prompt import PromptEncoder
from autovla_rt.runtime.scene import read_frames_dir

REPOSITORY = Path(__file__).parents[2]
SCENE = REPOSITORY / "calib_data" / "demo"
GRID = (2, 8, 14)


@pytest.fixture(scope="module")
def miniature():
    return REPOSITORY / "demo" / "checkpoint"


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


def test_transformers_reads_the_geometry(model, geometry):
    text, vision = model.config.text_config, model.config.vision_config
    for key in ("hidden_size", "num_hidden_layers", "intermediate_size", "vocab_size"):
        assert getattr(text, key) == getattr(geometry.language, key)
    assert tuple(text.rope_scaling["mrope_section"]) == geometry.language.mrope_section
    for key in ("depth", "hidden_size", "intermediate_size", "window_size", "tokens_per_second"):
        assert getattr(vision, key) == getattr(geometry.vision, key)
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert model.generation_config.repetition_penalty == 1.05


def test_weights_are_stored_in_float16_within_its_range(model):
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, weight.half().float()), name


def test_the_checkpoint_is_small_and_every_backend_can_tile_it(miniature, model, geometry):
    files = [path for path in miniature.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 20e6
    parameters = sum(weight.numel() for weight in model.parameters())
    assert 5e6 < parameters < 10e6
    vision, language = geometry.vision, geometry.language
    for size in (
        *(vision.hidden_size, vision.intermediate_size, language.hidden_size),
        language.intermediate_size,
    ):
        assert size % 128 == 0
    assert language.num_attention_heads > language.num_key_value_heads > 1
    assert 0 < len(vision.fullatt_block_indexes) < vision.depth


def prompt_and_pixels(miniature, geometry, config, auto_tokenizer, scene):
    base = miniature / "base"
    preprocessing = read_preprocessing(base, config.min_pixels, config.max_pixels)
    preprocessor = FramePreprocessor(preprocessing, geometry.vision)
    cameras = [Camera(name=name, grid=GRID) for name in CAMERAS]
    rows = [
        preprocessor.patches(scene.frames[camera.name], camera).reshape(-1, 1176)
        for camera in cameras
    ]
    recipe = read_recipe(REPOSITORY / "demo" / "recipe.toml")
    tokenizer = Tokenizer.from_file(str(base / "tokenizer.json"))
    prompt = compile_prompt(tokenizer, recipe.prompt_cot, cameras, geometry, add_vision_id=False)
    return {
        "input_ids": torch.from_numpy(PromptEncoder(prompt, tokenizer).ids(scene))[None],
        "pixel_values_videos": torch.from_numpy(np.concatenate(rows)),
        "video_grid_thw": torch.tensor([GRID] * len(CAMERAS)),
        "second_per_grid_ts": torch.tensor([1.0] * len(CAMERAS)),
    }


def test_free_greedy_generation_answers_in_format(
    model, miniature, geometry, config, auto_tokenizer
):
    """The model itself, without any grammar, writes one of the recipe's two answers."""
    scene = read_frames_dir(SCENE)
    inputs = prompt_and_pixels(miniature, geometry, config, auto_tokenizer, scene)
    answer = model.generate(
        **inputs, max_new_tokens=120, do_sample=False, repetition_penalty=1.0, temperature=None
    )
    text = auto_tokenizer.decode(answer[0, inputs["input_ids"].shape[1] :])
    fast = r"The road looks clear, act at once\."
    slow = r"The road looks tricky, think first\.\nScene: .*\nObject: .*\nIntent: .*\nAction: .*\."
    actions = r"<answer>\nMotion: (<action_\d+>){10}\n</answer><\|im_end\|>"
    assert re.fullmatch(rf"<think>\n({fast}|{slow})\n</think>\n{actions}", text), text


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
    assert 400 <= tokenizer.get_vocab_size(with_added_tokens=False) <= 1500


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
