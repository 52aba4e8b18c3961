"""Building an engine: what is checked first, and what the bundle then says."""

from __future__ import annotations

import json

import pytest

from autovla_rt.bundle import load_bundle
from autovla_rt.config import CAMERAS
from autovla_rt.errors import CapacityError, TargetError
from autovla_rt.export import build
from autovla_rt.export.progress import NoProgress
from autovla_rt.export.settings import Settings, check_settings

SIZES = dict.fromkeys(CAMERAS, (1920, 1080))


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def settings(**changes) -> Settings:
    return Settings(**{"name": "test", "frame_sizes": SIZES, **changes})


class Recorder:
    """Remembers the stages and what was counted in each."""

    def __init__(self):
        self.stages = []

    def stage(self, name, elements):
        self.stages.append([name, elements, 0])

    def advance(self, elements):
        self.stages[-1][2] += elements


@pytest.mark.parametrize("precision", ["fp32", "int8", "int4"])
def test_progress_ends_at_the_announced_total(model, tmp_path, precision):
    progress = Recorder()
    build.build_engine(model, settings(precision=precision), tmp_path / "e", progress)
    assert [name for name, _, _ in progress.stages] == [
        "checkpoint hash",
        "vision tower",
        "language model",
        "prompt prefix",
        "bundle",
    ]
    for _, announced, counted in progress.stages[1:3]:
        assert announced == counted > 0


@pytest.mark.parametrize("target", ["cpu", "x86"])
def test_parts_have_precisions_of_their_own(model, tmp_path, target):
    folder = tmp_path / "e"
    chosen = settings(precision="fp32/int4", target=target)
    manifest = build.build_engine(model, chosen, folder, NoProgress())
    assert (manifest.precision.vision, manifest.precision.language) == ("fp32", "int4")
    sizes = {name: record.size for name, record in load_bundle(folder).manifest.files.items()}
    assert sizes["vision_8x14.bin" if target == "x86" else "vision.bin"] > sizes["language.bin"]


def test_the_manifest_says_what_was_built(model, tmp_path):
    folder = tmp_path / "e"
    build.build_engine(model, settings(precision="fp32", notes=("a",)), folder, NoProgress())
    manifest = load_bundle(folder).manifest
    assert (manifest.precision.vision, manifest.precision.language) == ("fp32", "fp32")
    assert (manifest.target, manifest.backend, manifest.notes) == ("cpu", "ort", ("a",))
    assert manifest.checkpoint.sha256 == model.checkpoint.fingerprint()
    assert manifest.geometry == model.geometry
    assert manifest.actions == model.actions
    assert [camera.grid for camera in manifest.cameras] == [(2, 8, 14)] * 3
    assert set(manifest.library_versions) == {"onnx", "onnxruntime", "numpy", "tokenizers"}
    bundle = load_bundle(folder)
    assert bundle.recipe() == model.recipe
    assert bundle.prompt() == build.engine_prompt(model, manifest.cameras)
    stored = json.loads(bundle.path("tokenizer.json").read_text("utf-8"))
    assert stored == json.loads(model.tokenizer.to_str())


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"precision": "fp8"}, TargetError, "of fp32, int8, int8_sq, int4, int4_awq, int8_wo"),
        (
            {"target": "agx-orin-64", "precision": "fp8"},
            TargetError,
            "fp16, int8, int8_sq, int8_wo, int4",
        ),
        (
            {"precision": "int4/int8"},
            TargetError,
            "expected fp32, int8, int8_wo, int8_sq for the vision",
        ),
        ({"precision": "int8/int4/fp32"}, TargetError, "'int4/fp32' on cpu"),
        ({"precision": "int8/int2"}, TargetError, "'int2' on cpu"),
        ({"precision": "fp32/int4_awq"}, TargetError, "expected --calibration"),
        ({"precision": "int8,kv=int8"}, TargetError, "expected --calibration"),
        ({"precision": "int8,kv=int4"}, TargetError, "kv. in auto or int8 on cpu, got 'int4'"),
        ({"precision": "int8,kv=int8", "target": "x86"}, TargetError, "in auto on x86"),
        ({"precision": "int8,vision_ends=int4"}, TargetError, "got 'int4' for vision_ends"),
        ({"precision": "int8,mlp=int4_awq"}, TargetError, "expected --calibration"),
        ({"precision": "int8,heads=fp32"}, TargetError, "a part among vision_ends, attention"),
        ({"precision": "int8,mlp"}, TargetError, "BASE,PART=FORMAT"),
        ({"int4_block": 24}, TargetError, "int4 block 24: expected one of 16, 32, 64, 128, 256"),
        ({"kv_capacity": 128_001}, CapacityError, "expected at most 128000"),
        ({"kv_capacity": 300}, CapacityError, "expected at least"),
    ],
)
def test_impossible_settings_are_refused_before_any_work(model, tmp_path, changes, error, message):
    progress = Recorder()
    with pytest.raises(error, match=message):
        build.build_engine(model, settings(**changes), tmp_path / "e", progress)
    assert progress.stages == []
    assert list(tmp_path.iterdir()) == []


def test_the_smallest_capacity_counts_prompt_request_and_answer(model):
    cameras = build.camera_layout(model, settings())
    prompt = build.engine_prompt(model, cameras)
    encode = lambda text: model.tokenizer.encode(text, add_special_tokens=False).ids  # noqa: E731
    answer = "".join(part for part in model.recipe.answer.slow if isinstance(part, str))
    tail = "".join(part for part in prompt.tail if isinstance(part, str))
    literal = len(prompt.prefix_ids) + len(encode(tail)) + len(encode(answer))
    least = literal + model.actions.num_poses + build.SLOT_TOKENS
    with pytest.raises(CapacityError):
        build.check_capacity(model, prompt, least - 4)
    build.check_capacity(model, prompt, least + 4)  # texts around a slot may join differently


def test_cameras_stand_in_the_order_of_the_prompt(model):
    shuffled = {"front_right": (640, 640), "front": (1920, 1080), "front_left": (1242, 375)}
    layout = build.camera_layout(model, settings(frame_sizes=shuffled))
    assert [camera.name for camera in layout] == list(CAMERAS)
    grids = {camera.name: camera.grid for camera in layout}
    assert grids["front"] == (2, 8, 14)
    assert grids["front_right"][1] == grids["front_right"][2]


@pytest.mark.parametrize("precision", ["fp32", "int8", "int4"])
def test_every_precision_is_legal_for_the_cpu(precision):
    assert check_settings(settings(precision=precision)).backend == "ort"
    assert settings(precision=precision).parts.language == precision
