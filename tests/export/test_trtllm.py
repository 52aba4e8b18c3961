"""Export a checkpoint for TensorRT-LLM, as a user would."""

import json
import shlex
import subprocess

import numpy as np
import pytest
from safetensors.numpy import load_file

from autovla_rt.config import CompiledPrompt, Recipe
from autovla_rt.export.targets import TARGETS

SIZE = ("--frame-size", "392x224")
H100 = ("--target", "h100")


def words(demo, out, *options):
    return ["export", "trtllm", *demo.build_options, *SIZE, "--out", out, *options]


def test_the_checkpoint_has_all_that_its_engine_is_used_with(demo, invoke, tmp_path, calibration):
    out = tmp_path / "c"
    chosen = ("--precision", "fp8", "--calibration", calibration)
    code, _, said = invoke(*words(demo, out, *H100, *chosen))
    assert code == 0, said
    assert {path.name for path in out.iterdir()} == {
        *("config.json", "rank0.safetensors", "mrope.safetensors", "build.sh"),
        *("prompt.json", "recipe.json", "tokenizer.json", "tokenizer_config.json"),
        *("generation_config.json", "preprocessor_config.json"),
    }
    assert json.loads((out / "config.json").read_text())["quantization"]["quant_algo"] == "FP8"
    Recipe.model_validate_json((out / "recipe.json").read_text())


def test_the_rotary_inputs_have_a_row_for_every_position_of_the_engine(demo, invoke, tmp_path):
    out = tmp_path / "c"
    options = ("--precision", "fp16", "--kv-capacity", "700")
    code, _, said = invoke(*words(demo, out, *H100, *options))
    assert code == 0, said
    config = json.loads((out / "config.json").read_text())
    size = config["max_position_embeddings"] * config["rotary_embedding_dim"]
    assert config["max_position_embeddings"] == 700
    assert load_file(out / "mrope.safetensors")["mrope_rotary_cos_sin"].shape == (1, size)


def test_the_build_command_has_the_limits_of_the_prompt(demo, invoke, tmp_path):
    """The script is run with a trtllm-build that writes down what it is given."""
    out, tools = tmp_path / "a folder", tmp_path / "tools"
    options = ("--precision", "fp16", "--kv-capacity", "900")
    code, _, said = invoke(*words(demo, out, *H100, *options))
    assert code == 0, said
    tools.mkdir()
    recorder = tools / "trtllm-build"
    recorder.write_text('#!/bin/sh\nfor word; do echo "$word"; done\n')
    recorder.chmod(0o755)
    done = subprocess.run(
        ["sh", out / "build.sh", "my engine"],
        capture_output=True,
        text=True,
        check=True,
        env={"PATH": f"{tools}:/usr/bin:/bin"},
    )
    given = done.stdout.splitlines()
    assert given[:4] == ["--checkpoint_dir", str(out), "--output_dir", "my engine"]
    limits = dict(word.removeprefix("--").split("=") for word in given[4:])
    prompt = CompiledPrompt.model_validate_json((out / "prompt.json").read_text())
    assert limits["max_batch_size"] == "1"
    assert limits["max_seq_len"] == "900"
    assert limits["max_multimodal_len"] == str(sum(video.count for video in prompt.videos))
    assert len(prompt.prefix_ids) + 64 < int(limits["max_input_len"]) < 900
    assert limits["max_num_tokens"] == limits["max_input_len"]
    assert shlex.split(done.args[0]) == ["sh"]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (("--precision", "fp16"), "target 'cpu': expected an NVIDIA device for a checkpoint"),
        ((*H100, "--precision", "fp32"), "'fp32' on h100 (H100 SXM 80 GB, SM 9.0): expected one"),
        (
            (*H100, "--precision", "int8"),
            "expected one of fp16, int8_sq, int8_wo, int4_awq, fp8 for the whole language model",
        ),
        ((*H100, "--precision", "int8_sq/int8_sq"), "whole language model in a TensorRT-LLM"),
        ((*H100, "--precision", "int8_wo,mlp=fp16"), "got fp16/int8_wo,mlp=fp16"),
        ((*H100, "--precision", "fp8,kv=fp8"), "neither the vision tower nor scales of keys"),
        (
            ("--target", "rtx-sm120", "--precision", "nvfp4"),
            "expected one of fp16, int8_sq, int8_wo, int4_awq, fp8 for the whole",
        ),
        ((*H100, "--precision", "int4_awq", "--int4-block", "64"), "int4 block 64: expected 128"),
        ((*H100, "--precision", "fp8"), "precision fp8: expected --calibration"),
        (
            (*H100, "--precision", "int8_wo", "--calibration", "somewhere"),
            "precision int8_wo: expected no --calibration",
        ),
    ],
)
def test_what_has_no_engine_is_refused_before_any_work(demo, invoke, tmp_path, options, expected):
    given = ["export", "trtllm", "--checkpoint", tmp_path / "no", "--config", tmp_path / "no"]
    said = invoke.refused(8, *given, *options, "--out", tmp_path / "c")
    assert expected in said
    assert not (tmp_path / "c").exists()


@pytest.mark.parametrize("name", [name for name, of in TARGETS.items() if of.sm in (86, 87)])
def test_ampere_gets_no_fp8(demo, invoke, tmp_path, name):
    options = ["--target", name, "--precision", "fp8", "--calibration", tmp_path]
    said = invoke.refused(8, *words(demo, tmp_path / "c", *options))
    assert f"'fp8' on {name}" in said
    assert "expected one of fp16, int8, int8_sq, int8_wo, int4, int4_awq" in said


@pytest.mark.parametrize(("capacity", "code"), [("250", 9), ("128001", 9)])
def test_an_impossible_capacity_is_refused(demo, invoke, tmp_path, capacity, code):
    options = ("--precision", "fp16", "--kv-capacity", capacity)
    said = invoke.refused(code, *words(demo, tmp_path / "c", *H100, *options))
    assert f"KV capacity {capacity}: expected at" in said
    assert not (tmp_path / "c").exists()


def test_what_fails_on_the_way_leaves_nothing(demo, invoke, tmp_path, monkeypatch):
    from autovla_rt.export import trtllm

    def full(*_args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(trtllm, "emit_mrope", full)
    said = invoke.refused(10, *words(demo, tmp_path / "c", *H100, "--precision", "fp16"))
    assert "No space left" in said
    assert list(tmp_path.iterdir()) == []


def test_equal_inputs_give_equal_bytes(demo, invoke, tmp_path):
    for name in "ab":
        code, _, said = invoke(*words(demo, tmp_path / name, *H100, "--precision", "int8_wo"))
        assert code == 0, said
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()
    table = load_file(tmp_path / "a" / "rank0.safetensors")["lm_head.weight"]
    assert table.dtype == np.float16
