"""One model in every form its users hold it gives one answer."""

import json
import shutil
from pathlib import Path

import pytest
from random_checkpoint import write_hf_folder, write_lightning

from autovla_rt.config import CAMERAS
from autovla_rt.export.build import build_engine
from autovla_rt.export.model_config import read_geometry
from autovla_rt.export.open_model import ModelFiles, open_model
from autovla_rt.export.progress import NoProgress
from autovla_rt.export.settings import Settings
from autovla_rt.runtime.planner import Planner
from autovla_rt.runtime.scene import read_frames_dir

REPO = Path(__file__).resolve().parents[1]
RECIPE = REPO / "demo" / "recipe.toml"
SCENE = REPO / "calib_data" / "demo"
SCALE = 0.15
LORA = "\n  lora: {use: true, alpha: 16, dropout: 0.1}"


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """The demo's config, codebook and base folder, around weights in other layouts."""
    folder = tmp_path_factory.mktemp("layouts")
    shutil.copytree(REPO / "demo" / "checkpoint", folder, dirs_exist_ok=True)
    (folder / "base" / "model.safetensors").unlink()
    return folder


def plan_of(checkout, files):
    """Build in fp32 and plan both ways of thinking; the answer without times and identities."""
    settings = Settings(
        "x", precision="fp32", frame_sizes=dict.fromkeys(CAMERAS, (392, 224)), kv_capacity=512
    )
    engine = checkout / "engine"
    model = open_model(files)
    build_engine(model, settings, engine, NoProgress())
    model.checkpoint.close()
    planner = Planner.load(engine)
    request = read_frames_dir(SCENE)
    answers = []
    for mode in ("fast", "slow"):
        answer = planner.plan(request, mode=mode, thinking_token_budget=12).as_dict()
        del answer["stages_ms"], answer["engine"]
        answers.append(answer)
    shutil.rmtree(engine)
    return answers


@pytest.fixture(scope="module")
def folder_answers(checkout):
    folder = checkout / "trained"
    shutil.copytree(checkout / "base", folder)
    geometry = read_geometry(checkout / "base")
    write_hf_folder(folder, geometry, seed=5, dtype="float32", scale=SCALE)
    files = ModelFiles(folder, checkout / "config.yaml", recipe=RECIPE)
    return plan_of(checkout, files)


def test_the_answer_is_no_constant(folder_answers):
    fast, slow = folder_answers
    assert len(set(fast["action_tokens"])) > 1
    assert fast["action_tokens"] != slow["action_tokens"]
    assert slow["thinking_tokens"] == 12


def test_shards_give_the_same_answer(checkout, folder_answers):
    folder = checkout / "sharded"
    shutil.copytree(checkout / "base", folder)
    geometry = read_geometry(checkout / "base")
    write_hf_folder(folder, geometry, seed=5, dtype="float32", scale=SCALE, shard_bytes=4_000_000)
    assert len(list(folder.glob("*.safetensors"))) > 2
    files = ModelFiles(folder, checkout / "config.yaml", recipe=RECIPE)
    assert plan_of(checkout, files) == folder_answers


@pytest.mark.parametrize("layout", ["old", "new", "drivevla", "lora"])
def test_lightning_layouts_give_the_same_answer(checkout, folder_answers, layout):
    path = checkout / f"{layout}.ckpt"
    geometry = read_geometry(checkout / "base")
    write_lightning(path, geometry, seed=5, layout=layout, scale=SCALE)
    config = checkout / f"{layout}.yaml"
    text = (checkout / "config.yaml").read_text()
    config.write_text(text.replace("model:", "model:" + (LORA if layout == "lora" else ""), 1))
    files = ModelFiles(path, config, recipe=RECIPE)
    assert json.dumps(plan_of(checkout, files)) == json.dumps(folder_answers)
