"""Random miniatures in transformers, and fp32 engines built from their saved checkpoints."""

import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from hf_miniatures import SHAPES, build_model, write_checkpoint
from PIL import Image
from transformers import AutoTokenizer

from autovla_rt.config import CAMERAS
from autovla_rt.export.build import build_engine
from autovla_rt.export.open_model import ModelFiles, open_model
from autovla_rt.export.progress import NoProgress
from autovla_rt.export.settings import Settings
from autovla_rt.runtime.frames import FramePreprocessor
from autovla_rt.runtime.planner import Planner
from autovla_rt.runtime.scene import Request

CHECKOUT = Path(__file__).resolve().parents[1] / "export" / "fixtures" / "checkout"
FRAME_SIZES = {"front": (1920, 1080), "front_left": (1242, 375), "front_right": (960, 720)}


@dataclass(frozen=True)
class Pair:
    """A model in transformers and the planner of its engine."""

    reference: torch.nn.Module
    planner: Planner
    processor: Path
    folder: Path


@pytest.fixture(
    scope="session",
    params=[f"{s}-cot-cpu" for s in SHAPES]
    + ["gqa8-direct-cpu", "gqa8-cot-x86", "gqa8-cot-cpu-standard"],
)
def pair(request, qwen_processor, tmp_path_factory):
    """Miniatures of several shapes, with and without chain of thought, on each CPU backend."""
    shape, prompt, target = request.param.split("-", 2)
    folder = tmp_path_factory.mktemp("pair")
    yield make_pair(SHAPES[shape], qwen_processor, folder, prompt == "cot", target)
    shutil.rmtree(folder)


@pytest.fixture(scope="session")
def driving_request(tmp_path_factory):
    """Twelve real JPEG files, each camera of its own odd size."""
    rng = np.random.default_rng(7)
    folder = tmp_path_factory.mktemp("frames")
    frames = {}
    for camera in CAMERAS:
        paths = [folder / f"{camera}_{index}.jpg" for index in range(4)]
        for path in paths:
            coarse = rng.integers(0, 256, (9, 16, 3), np.uint8)
            Image.fromarray(coarse).resize(FRAME_SIZES[camera]).save(path, quality=92)
        frames[camera] = tuple(paths)
    return Request(frames, velocity=7.25, acceleration=-0.5, instruction="Turn Left")


@pytest.fixture(scope="session")
def checkout():
    """A training checkout in our own words."""
    return CHECKOUT


def make_pair(shape, processor, folder, use_cot, target):
    model = build_model(shape)
    config = write_checkpoint(model, processor, folder, use_cot=use_cot)
    files = ModelFiles(folder / "base", config, recipe=CHECKOUT)
    settings = Settings("pair", target, "fp32", frame_sizes=FRAME_SIZES)
    opened = open_model(files)
    build_engine(opened, settings, folder / "engine", NoProgress())
    opened.checkpoint.close()
    return Pair(model, Planner.load(folder / "engine"), processor, folder)


@pytest.fixture(scope="session")
def reference_inputs():
    """What transformers is given for a request: its own chat template, the processor's patches."""

    def make(pair, request):
        planner = pair.planner
        manifest = planner.bundle.manifest
        recipe = planner.bundle.recipe()
        prompt = recipe.prompt_cot if manifest.use_cot else recipe.prompt_direct
        values = {
            "velocity": request.velocity,
            "acceleration": request.acceleration,
            "instruction": request.instruction.lower(),
        }
        content = []
        for part in prompt.user:
            if isinstance(part, tuple):
                text = "".join(
                    p if isinstance(p, str) else format(values[p.slot], p.format) for p in part
                )
                content.append({"type": "text", "text": text})
            else:
                content.append({"type": "video", "video": part.camera})
        messages = [
            {"role": "system", "content": [{"type": "text", "text": prompt.system}]},
            {"role": "user", "content": content},
        ]
        tokenizer = AutoTokenizer.from_pretrained(pair.processor)
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        for camera in manifest.cameras:
            pads = "<|placeholder|>" * camera.num_visual_tokens(2)
            text = text.replace("<|video_pad|>", pads, 1)
        text = text.replace("<|placeholder|>", "<|video_pad|>")
        ids = tokenizer(text, return_tensors="pt").input_ids
        frames = FramePreprocessor(manifest.preprocessing, manifest.geometry.vision)
        patches = [
            frames.patches(request.frames[c.name], c).reshape(-1, 1176) for c in manifest.cameras
        ]
        return {
            "input_ids": ids,
            "attention_mask": torch.ones_like(ids),
            "pixel_values_videos": torch.from_numpy(np.concatenate(patches)),
            "video_grid_thw": torch.tensor([c.grid for c in manifest.cameras]),
            "second_per_grid_ts": torch.ones(3),
        }

    return make
