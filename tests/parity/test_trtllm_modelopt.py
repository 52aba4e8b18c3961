"""Our TensorRT-LLM checkpoint is that of NVIDIA ModelOpt's export_tensorrt_llm_checkpoint.

ModelOpt runs in an environment of its own (make .venv-modelopt/stamp). It gets the language model
alone, as a Qwen2, with our weights in float32, rescaled and clipped, and the ranges of our
calibration, and rounds them by max calibration: how channels are rescaled is compared in
test_modelopt.py, at ModelOpt's exponents.
"""

import json
import subprocess
from pathlib import Path

import numpy as np
import pytest
from demo_engine import RECIPE, REPO
from safetensors import safe_open
from safetensors.numpy import save_file

from autovla_rt.config import CAMERAS
from autovla_rt.export.build import camera_layout
from autovla_rt.export.open_model import ModelFiles, open_model
from autovla_rt.export.progress import NoProgress
from autovla_rt.export.settings import Settings
from autovla_rt.export.trtllm import export_trtllm
from autovla_rt.export.unified import unified_weights

torch = pytest.importorskip("torch")

PYTHON = REPO / ".venv-modelopt" / "bin" / "python"
PRECISIONS = ("fp16", "int8_sq", "int8_wo", "int4_awq", "fp8")
CALIBRATED = ("int8_sq", "int4_awq", "fp8")
VOCABULARY = ("lm_head.weight", "transformer.vocab_embedding.weight")

PADDING = 64
"""ModelOpt pads the vocabulary of int4_awq to a multiple; we do not: zero logits may be chosen."""

DIFFERENT = {
    "producer",
    "architecture",
    "position_embedding_type",
    "max_position_embeddings",
}
"""Who wrote it, and what says that a rotary table comes with requests (emit/trtllm_config.py)."""


@pytest.fixture(scope="module")
def folders(demo, calibration, tmp_path_factory):
    """A folder of each precision with our checkpoint (ours) and ModelOpt's (theirs)."""
    if not PYTHON.exists():
        pytest.skip(f"{PYTHON} is missing: make .venv-modelopt/stamp")
    root = tmp_path_factory.mktemp("trtllm")
    model = open_model(ModelFiles(demo.base, demo.config, recipe=RECIPE))
    with model.checkpoint:
        for precision in PRECISIONS:
            settings = Settings(
                "ours",
                "h100",
                precision,
                frame_sizes=dict.fromkeys(CAMERAS, (392, 224)),
                calibration=calibration if precision in CALIBRATED else None,
            )
            write_inputs(model, settings, root / precision)
            ours = root / precision / "ours"
            ours.mkdir()
            export_trtllm(model, settings, camera_layout(model, settings), ours, NoProgress())
    script = Path(__file__).with_name("modelopt_trtllm.py")
    command = [str(PYTHON), str(script), str(root)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    return root


def write_inputs(model, settings, folder):
    """Write the language model's weights as they are quantized, but in float32, and the ranges."""
    source, formats = unified_weights(model, settings, NoProgress())
    (folder / "weights").mkdir(parents=True)
    base = json.loads((model.base / "config.json").read_text())
    for key in ("vision_config", "rope_scaling"):
        base.pop(key)
    qwen2 = {**base, "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2"}
    (folder / "weights" / "config.json").write_text(json.dumps(qwen2))
    names = [name for name in model.checkpoint.names if not name.startswith("visual.")]
    tensors = {name: source.rows(name, 0, source.shape(name)[0]).copy() for name in names}
    save_file(tensors, folder / "weights" / "model.safetensors", {"format": "pt"})
    modules = [name.removesuffix(".weight") for name in names if name.endswith("_proj.weight")]
    ranges = formats.ranges
    largest = {} if ranges is None else {of: ranges.largest_input(of).max() for of in modules}
    np.savez(folder / "ranges.npz", **largest)


def read(folder):
    """Return every tensor of a checkpoint."""
    with safe_open(folder / "rank0.safetensors", "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


@pytest.mark.parametrize("precision", PRECISIONS)
def test_tensors_are_theirs(folders, precision):
    ours, theirs = (read(folders / precision / who) for who in ("ours", "theirs"))
    assert ours.keys() == theirs.keys()
    quantized = 0
    for name, their in theirs.items():
        our = ours[name]
        if precision == "int4_awq" and name in VOCABULARY:
            assert len(their) % PADDING == 0
            assert not their[len(our) :].any()
            their = their[: len(our)]
        assert our.shape == their.shape, name
        assert our.dtype == their.dtype, name
        quantized += their.dtype in (torch.int8, torch.float8_e4m3fn)
        assert torch.equal(our.view(torch.uint8), their.view(torch.uint8)), name
    assert quantized == (0 if precision == "fp16" else 4 * 5)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_config_says_what_theirs_does(folders, precision):
    ours, theirs = (
        json.loads((folders / precision / who / "config.json").read_text())
        for who in ("ours", "theirs")
    )
    vocabulary = theirs.pop("vocab_size")
    assert ours["vocab_size"] == 2585
    padded = -(-2585 // PADDING) * PADDING
    assert vocabulary == (padded if precision == "int4_awq" else 2585)
    same = theirs.keys() - DIFFERENT
    assert {key: ours[key] for key in same} == {key: theirs[key] for key in same}
