"""Export for TensorRT Edge-LLM, as a user would, without NVIDIA's exporter."""

import json
import shlex

import numpy as np
import pytest
from demo_engine import FRAMES, copy_checkpoint
from safetensors import safe_open

from autovla_rt.export.edgellm_exporter import exporter_command
from autovla_rt.runtime.backends.edgellm import EdgeLLM
from autovla_rt.runtime.scene import read_frames_dir

ORIN = ("--target", "agx-orin-64", "--precision", "fp16")
SIZE = ("--frame-size", "392x224")


def words(demo, out, *options):
    return ["export", "edgellm", *demo.build_options, *SIZE, "--out", out, *options]


@pytest.fixture(scope="module")
def folder(demo, tmp_path_factory):
    from demo_engine import run

    out = tmp_path_factory.mktemp("edgellm") / "out"
    done = run(*words(demo, out, *ORIN), cache=out.parent)
    assert done.returncode == 0, done.stderr
    assert "precision (vision tower/language model): fp16/fp16" in done.stderr
    return out


def test_everything_for_the_device_is_in_one_folder(folder):
    files = {str(of.relative_to(folder)) for of in folder.rglob("*") if of.is_file()}
    guides = {f"guided_decoding/{of}" for of in ("auto", "fast", "slow")}
    assert {of for of in files if not of.startswith("checkpoint/")} == {
        *("COMMANDS.md", "autovla.json", "codebook.safetensors", "input.json", "request.json"),
        *("fast/input.json", "fast/reduced_vocab.json", "fast/vocab_map.safetensors"),
        *(f"{of}.json" for of in guides),
        *(f"{of}.regex.json" for of in guides),
    }
    assert {"checkpoint/config.json", "checkpoint/model.safetensors"} <= files


def test_the_reduced_vocabulary_has_the_actions_and_the_ends(folder):
    with safe_open(folder / "fast" / "vocab_map.safetensors", "np") as file:
        ids = file.get_tensor("vocab_map")
    assert ids.dtype == np.int32
    assert set(range(537, 2585)) | {515, 517} < set(ids.tolist())
    info = json.loads((folder / "fast" / "reduced_vocab.json").read_text())
    assert (info["vocab_size"], info["reduced_vocab_size"]) == (2585, len(ids))


def test_commands_name_what_is_there_and_what_engines_need(folder):
    text = (folder / "COMMANDS.md").read_text()
    assert "Built, not executed" in text
    assert "tensorrt-edgellm-export checkpoint onnx --target-sm 87" in text
    joined = text.replace("\\\n", " ")
    (build,) = [line for line in joined.split("\n") if "tensorrt-edgellm-build" in line]
    given = dict(pairs(shlex.split(build)))
    # Three cameras of two temporal patches with 4 x 7 tokens.
    assert given["--max-image-tokens"] == "168"
    assert given["--max-image-tokens-per-image"] == given["--min-image-tokens"] == "28"
    assert given["--max-kv-cache-capacity"] == "2048"
    assert (folder / given["--model-dir"] / "config.json").is_file()
    assert (folder / given["--reduced-vocab-dir"] / "vocab_map.safetensors").is_file()
    served = EdgeLLM.load(folder)
    assert 168 < int(given["--max-input-len"]) < 2048 - served.model.answer_tokens["auto"]


def pairs(words):
    return ((word, words[index + 1]) for index, word in enumerate(words) if word[:2] == "--")


def test_the_example_is_a_request_of_the_runtime(folder, tmp_path):
    example = json.loads((folder / "request.json").read_text())
    body = EdgeLLM.load(folder).body(read_frames_dir(FRAMES), tmp_path)
    assert example.keys() == body.keys()
    assert example["guided_decoding"] == body["guided_decoding"]
    assert example["guided_decoding"] == read(folder / "guided_decoding" / "auto.json")
    file = read(folder / "input.json")
    assert file["requests"] == [
        {"messages": example["messages"], "guided_decoding": example["guided_decoding"]}
    ]
    assert file["max_generate_length"] == example["max_tokens"]
    reduced = read(folder / "fast" / "input.json")
    assert reduced["requests"][0]["messages"] == example["messages"]
    rows = len(safe_map(folder))
    numbers = reduced["requests"][0]["guided_decoding"]["ebnf"].split("action ::= Token(")[1]
    assert max(map(int, numbers.rstrip(")\n").split(","))) == rows - 1


def read(path):
    return json.loads(path.read_text())


def safe_map(folder):
    with safe_open(folder / "fast" / "vocab_map.safetensors", "np") as file:
        return file.get_tensor("vocab_map")


def test_a_checkpoint_without_chain_of_thought_has_one_answer(demo, invoke, tmp_path):
    other = copy_checkpoint(demo, tmp_path / "copy")
    config = other.config.read_text()
    assert "use_cot: true" in config
    other.config.write_text(config.replace("use_cot: true", "use_cot: false"))
    out = tmp_path / "out"
    code, _, said = invoke(*words(other, out, *ORIN))
    assert code == 0, said
    assert {of.name for of in (out / "guided_decoding").iterdir()} == {
        *("direct.json", "direct.regex.json"),
    }
    assert (out / "direct" / "vocab_map.safetensors").is_file()


@pytest.mark.parametrize(
    ("code", "options", "expected"),
    [
        (
            8,
            ("--target", "rtx-sm89", "--precision", "fp16"),
            "expected a device of TensorRT Edge-LLM, one of orin-nano-8, orin-nx-8",
        ),
        (8, ("--target", "agx-orin-64", "--precision", "fp8"), "'fp8' on agx-orin-64"),
        (8, ("--target", "agx-orin-64", "--precision", "int4_awq"), "expected --calibration"),
        (11, (*ORIN, "--exporter", "nowhere/tensorrt-edgellm-export"), "nowhere"),
    ],
)
def test_what_cannot_be_is_refused_before_any_work(demo, invoke, tmp_path, code, options, expected):
    said = invoke.refused(code, *words(demo, tmp_path / "out", *options))
    assert expected in said
    assert "opening" not in said
    assert not (tmp_path / "out").exists()


def test_an_exporter_goes_with_edgellm_alone(demo, invoke, tmp_path):
    given = ["export", "checkpoint", *demo.build_options, *ORIN, "--out", tmp_path / "o"]
    assert "--exporter goes with edgellm" in invoke.refused(2, *given, "--exporter", tmp_path)


def test_too_small_a_cache_is_refused(demo, invoke, tmp_path):
    said = invoke.refused(9, *words(demo, tmp_path / "o", *ORIN, "--kv-capacity", "200"))
    assert "expected at least" in said


def test_an_exporter_that_fails_is_heard_and_leaves_nothing(demo, invoke, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", "not-for-its-environment")
    script = tmp_path / "bin" / "tensorrt-edgellm-export"
    script.parent.mkdir()
    script.write_text("#!/bin/sh\necho why it failed >&2\necho $PYTHONPATH $@ >&2\nexit 3\n")
    script.chmod(0o755)
    out = tmp_path / "out"
    said = invoke.refused(4, *words(demo, out, *ORIN, "--exporter", script))
    assert "got exit code 3 and nothing for llm, visual" in said
    assert "why it failed" in said
    assert "/checkpoint" in said
    assert "--target-sm 87" in said
    assert "not-for-its-environment" not in said
    assert {of.name for of in tmp_path.iterdir()} == {"bin"}


def test_an_exporter_that_writes_nothing_is_no_success(demo, invoke, tmp_path):
    script = tmp_path / "tensorrt-edgellm-export"
    script.write_text("#!/bin/sh\n")
    script.chmod(0o755)
    said = invoke.refused(4, *words(demo, tmp_path / "out", *ORIN, "--exporter", script))
    assert "got exit code 0 and nothing for llm, visual" in said


def test_an_exporter_is_a_script_or_a_python(tmp_path, invoke, demo):
    for name, expected in (
        ("tensorrt-edgellm-export", []),
        ("python", ["-m", "tensorrt_edgellm.scripts.export"]),
        ("python3.11", ["-m", "tensorrt_edgellm.scripts.export"]),
    ):
        (tmp_path / name).touch()
        assert exporter_command(tmp_path / name) == [str(tmp_path / name), *expected]
    (tmp_path / "other").touch()
    given = ("--exporter", tmp_path / "other")
    said = invoke.refused(11, *words(demo, tmp_path / "o", *ORIN, *given))
    assert "expected tensorrt-edgellm-export or a python" in said


def test_a_folder_with_something_in_it_is_not_touched(demo, invoke, tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    said = invoke.refused(10, *words(demo, tmp_path, *ORIN))
    assert "expected a new or empty folder" in said
    assert [of.name for of in tmp_path.iterdir()] == ["mine.txt"]
