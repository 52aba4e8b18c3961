"""TensorRT Edge-LLM's server reads our requests: body, guide, frames and prompt.

Its Python part runs in an environment of its own (make .venv-edgellm/stamp), up to the native
runtime, which needs a GPU.
"""

import json
import os
import re
import subprocess
from pathlib import Path

import pytest
from demo_engine import FRAMES, RECIPE, REPO

from autovla_rt.config import CAMERAS
from autovla_rt.edgellm_export import export_edgellm
from autovla_rt.export.build import camera_layout, engine_prompt
from autovla_rt.export.open_model import ModelFiles, open_model
from autovla_rt.export.progress import NoProgress
from autovla_rt.export.settings import Settings
from autovla_rt.runtime.backends.edgellm import EdgeLLM
from autovla_rt.runtime.prompt import PromptEncoder
from autovla_rt.runtime.scene import read_frames_dir

PYTHON = REPO / ".venv-edgellm" / "bin" / "python"
READER = Path(__file__).with_name("edgellm_request.py")


@pytest.fixture(scope="module")
def settings():
    return Settings("c", "agx-orin-64", "fp16", frame_sizes=dict.fromkeys(CAMERAS, (392, 224)))


@pytest.fixture(scope="module", params=["plain", "numbered"])
def model(request, demo):
    """With and without "Video N: " before each video."""
    numbered = request.param == "numbered"
    model = open_model(ModelFiles(demo.base, demo.config, recipe=RECIPE, add_vision_id=numbered))
    with model.checkpoint:
        yield model


@pytest.fixture(scope="module")
def folder(model, settings, tmp_path_factory):
    out = tmp_path_factory.mktemp("edgellm")
    export_edgellm(model, settings, camera_layout(model, settings), out, None, NoProgress())
    return out


@pytest.fixture(scope="module")
def body(folder, tmp_path_factory):
    frames = tmp_path_factory.mktemp("frames")
    return EdgeLLM.load(folder).body(read_frames_dir(FRAMES), frames), frames


def test_the_server_reads_body_guide_and_frames(body, tmp_path):
    if not PYTHON.exists():
        pytest.skip(f"{PYTHON} is missing: make .venv-edgellm/stamp")
    written, frames = body
    (tmp_path / "body.json").write_text(json.dumps(written))
    command = [PYTHON, "-W", "ignore", READER, tmp_path / "body.json", frames]
    environment = {name: of for name, of in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(map(str, command), capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    read = json.loads(done.stdout)
    assert read["modalities"] == ["video"]
    assert read["guide"] == ["ebnf", written["guided_decoding"]["ebnf"]]
    assert read["budget_left"] == 0
    for video in read["videos"]:
        assert (video["tokens"], video["groups"]) == (56, 2)
        assert (video["fps"], video["do_resize"], len(video["paths"])) == (2.0, False, 4)
    for name in ("max_tokens", "temperature", "enable_thinking", "messages"):
        assert read[name] == written[name]


def test_the_chat_template_makes_our_prompt_of_the_messages(model, settings, folder, body):
    """As transformers renders it; Edge-LLM has a renderer of its own for the same template."""
    transformers = pytest.importorskip("transformers")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder / "checkpoint")
    text = tokenizer.apply_chat_template(
        body[0]["messages"], tokenize=False, add_generation_prompt=True
    )
    cameras = camera_layout(model, settings)
    for camera in cameras:
        text = text.replace("<|video_pad|>", "<|pad|>" * camera.num_visual_tokens(2), 1)
    found = tokenizer(text.replace("<|pad|>", "<|video_pad|>")).input_ids
    encoder = PromptEncoder(engine_prompt(model, cameras), model.tokenizer)
    assert found == encoder.ids(read_frames_dir(FRAMES)).tolist()


@pytest.mark.parametrize("tool", ["export", "build", "serve"])
def test_commands_have_options_that_the_tools_have(folder, tool):
    program = PYTHON.with_name(f"tensorrt-edgellm-{tool}")
    if not program.exists():
        pytest.skip(f"{program} is missing: make .venv-edgellm/stamp")
    environment = {name: of for name, of in os.environ.items() if name != "PYTHONPATH"}
    told = subprocess.run(
        [program, "--help"], capture_output=True, text=True, check=True, env=environment
    ).stdout
    lines = (folder / "COMMANDS.md").read_text().replace("\\\n", " ").split("\n")
    used = [line.split() for line in lines if line.strip().startswith(program.name)]
    assert used
    for word in (word for line in used for word in line if word.startswith("--")):
        assert re.search(rf"{word}\b(?!-)", told), word
