"""Our unified checkpoint is the one that NVIDIA ModelOpt's export_hf_checkpoint writes.

ModelOpt runs in an environment of its own (make .venv-modelopt/stamp). It gets our weights in
float32, rescaled and clipped, and the ranges of our calibration, and rounds them by max
calibration: how channels are rescaled is compared in test_modelopt.py, at ModelOpt's exponents.
"""

import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from demo_engine import RECIPE, REPO
from safetensors import safe_open
from safetensors.numpy import save_file

from autovla_rt.config import CAMERAS
from autovla_rt.export.open_model import ModelFiles, open_model
from autovla_rt.export.progress import NoProgress
from autovla_rt.export.settings import Settings
from autovla_rt.export.unified import export_checkpoint, unified_weights

torch = pytest.importorskip("torch")

PYTHON = REPO / ".venv-modelopt" / "bin" / "python"
PRECISIONS = ("int8_sq", "int8_wo", "int4_awq", "fp8", "fp8,kv=fp8", "nvfp4")
LAYERS = [f"model.layers.{index}" for index in range(4)]
LINEAR = [
    *(f"self_attn.{letter}_proj" for letter in "qkvo"),
    *(f"mlp.{name}_proj" for name in ("gate", "up", "down")),
]


@pytest.fixture(scope="module")
def folders(demo, calibration, tmp_path_factory):
    """A folder of each precision with our checkpoint (ours) and ModelOpt's (theirs)."""
    if not PYTHON.exists():
        pytest.skip(f"{PYTHON} is missing: make .venv-modelopt/stamp")
    root = tmp_path_factory.mktemp("unified")
    model = open_model(ModelFiles(demo.base, demo.config, recipe=RECIPE))
    with model.checkpoint:
        for precision in PRECISIONS:
            settings = Settings(
                "ours",
                "rtx-sm120",
                precision,
                frame_sizes=dict.fromkeys(CAMERAS, (392, 224)),
                calibration=None if precision == "int8_wo" else calibration,
            )
            write_inputs(model, settings, root / precision)
            (root / precision / "ours").mkdir()
            export_checkpoint(model, settings, root / precision / "ours", NoProgress())
    script = Path(__file__).with_name("modelopt_checkpoint.py")
    command = [str(PYTHON), str(script), str(root)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    return root


def write_inputs(model, settings, folder):
    """Write the weights as they are quantized, but in float32, and the ranges."""
    source, formats = unified_weights(model, settings, NoProgress())
    (folder / "weights").mkdir(parents=True)
    for name in ("config.json", "generation_config.json"):
        shutil.copy(model.base / name, folder / "weights" / name)
    tensors = {
        name: source.rows(name, 0, source.shape(name)[0]).copy() for name in model.checkpoint.names
    }
    save_file(tensors, folder / "weights" / "model.safetensors", {"format": "pt"})
    ranges = {}
    if formats.ranges is not None:
        for index, layer in enumerate(LAYERS):
            for name in LINEAR:
                module = f"{layer}.{name}"
                ranges[module] = formats.ranges.largest_input(module).max()
            key, value = formats.ranges.largest_kv(index)
            ranges[f"{layer}.self_attn.keys"] = key.max()
            ranges[f"{layer}.self_attn.values"] = value.max()
    np.savez(folder / "ranges.npz", **ranges)


def read(folder):
    """Return every tensor of a checkpoint."""
    with safe_open(folder / "model.safetensors", "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def codes(tensor, precision):
    """Return integers to compare: nibbles of int4, signed, and the steps of float8 and float4."""
    if tensor.dtype == torch.uint8:
        nibbles = torch.stack([tensor & 15, tensor >> 4]).to(torch.int16)
        negative = 8 - nibbles if precision == "nvfp4" else nibbles - 16
        return torch.where(nibbles > 7, negative, nibbles)
    if tensor.dtype == torch.float8_e4m3fn:
        bits = tensor.view(torch.uint8).to(torch.int16)
        return torch.where(bits > 127, 128 - bits, bits)
    return tensor.to(torch.int16)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_tensors_are_theirs(folders, precision):
    ours, theirs = (read(folders / precision / who) for who in ("ours", "theirs"))
    assert ours.keys() == theirs.keys()
    quantized = 0
    for name, their in theirs.items():
        our = ours[name]
        assert our.shape == their.shape, name
        if their.dtype in (torch.int8, torch.uint8, torch.float8_e4m3fn):
            assert our.dtype == their.dtype, name
            off = (codes(our, precision) - codes(their, precision)).abs()
            assert off.max() <= 1, name
            assert (off > 0).float().mean() <= 1e-3, name
            quantized += name.endswith(".weight")
        elif "_scale" in name:
            assert our.dtype == their.dtype, name
            torch.testing.assert_close(our, their, rtol=1e-3, atol=0, msg=name)
        else:  # ModelOpt leaves the rest in the type that it was given
            assert our.dtype == torch.float16
            torch.testing.assert_close(our.float(), their, rtol=1e-3, atol=1e-6, msg=name)
    assert quantized == len(LAYERS) * len(LINEAR)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_quantization_is_described_as_theirs(folders, precision):
    ours, theirs = (
        json.loads((folders / precision / who / "hf_quant_config.json").read_text())["quantization"]
        for who in ("ours", "theirs")
    )
    # They say so of every AWQ checkpoint, also where every scale was folded.
    theirs.pop("pre_quant_scale", None)
    ours.pop("pre_quant_scale", None)
    assert ours == theirs
    embedded, their_embedded = (
        json.loads((folders / precision / who / "config.json").read_text())["quantization_config"]
        for who in ("ours", "theirs")
    )
    their_embedded.pop("producer")
    assert their_embedded.items() <= embedded.items()
