"""Export a checkpoint for NVIDIA's engines, as a user would."""

import json
import shutil

import pytest
from demo_engine import RECIPE
from safetensors import safe_open

from autovla_rt.errors import TargetError
from autovla_rt.export import unified
from autovla_rt.export.model_config import read_geometry
from autovla_rt.export.progress import NoProgress
from autovla_rt.export.settings import Settings
from autovla_rt.export.targets import TARGETS
from autovla_rt.export.unified import unified_weights

SIZE = ("--frame-size", "392x224")
ORIN = ("--target", "agx-orin-64")


def words(demo, out, *options):
    return ["export", "checkpoint", *demo.build_options, *SIZE, "--out", out, *options]


@pytest.mark.parametrize(
    ("precision", "said_as"), [("int8_sq", "fp16/int8_sq"), ("int8_sq/int8_sq", "int8_sq/int8_sq")]
)
def test_a_calibrated_checkpoint_says_in_what_each_tower_is(
    demo, invoke, tmp_path, calibration, precision, said_as
):
    out = tmp_path / "c"
    chosen = ("--precision", precision, "--calibration", calibration)
    code, _, said = invoke(*words(demo, out, *ORIN, *chosen))
    assert code == 0, said
    assert f"precision (vision tower/language model): {said_as}" in said
    assert {path.name for path in out.iterdir()} == {
        *("config.json", "generation_config.json", "hf_quant_config.json", "model.safetensors"),
        *("preprocessor_config.json", "tokenizer.json", "tokenizer_config.json"),
    }


def test_equal_inputs_give_equal_bytes(demo, invoke, tmp_path):
    for name in "ab":
        code, _, said = invoke(*words(demo, tmp_path / name, *ORIN, "--precision", "fp16"))
        assert code == 0, said
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()


def test_a_lightning_checkpoint_brings_vocabulary_and_action_tokens(
    demo, invoke, tmp_path, random_checkpoint
):
    """Beside a base model as it was before training: fewer rows and no action tokens."""
    transformers = pytest.importorskip("transformers")
    base = tmp_path / "base"
    shutil.copytree(demo.base, base)
    for path, edit in (
        (base / "config.json", lambda content: content.update(vocab_size=1000)),
        (base / "tokenizer.json", without_actions),
        (base / "tokenizer_config.json", without_decoder),
    ):
        content = json.loads(path.read_text())
        edit(content)
        path.write_text(json.dumps(content))
    random_checkpoint.write_lightning(tmp_path / "m.ckpt", read_geometry(demo.base), seed=0)
    out = tmp_path / "c"
    given = ["--checkpoint", tmp_path / "m.ckpt", "--config", demo.config, "--recipe", RECIPE]
    options = ["--base", base, *ORIN, "--precision", "fp16", "--out", out]
    code, _, said = invoke("export", "checkpoint", *given, *options)
    assert code == 0, said
    config = json.loads((out / "config.json").read_text())
    with safe_open(out / "model.safetensors", "np") as file:
        rows = file.get_slice("model.embed_tokens.weight").get_shape()[0]
    assert config["vocab_size"] == rows == 2585
    tokenizer = transformers.AutoTokenizer.from_pretrained(out)
    assert tokenizer.encode("<action_5><action_2047>") == [537 + 5, 537 + 2047]
    assert tokenizer.chat_template


def without_actions(content):
    content["added_tokens"] = [
        token for token in content["added_tokens"] if not token["content"].startswith("<action_")
    ]


def without_decoder(content):
    content["added_tokens_decoder"] = {
        index: token
        for index, token in content["added_tokens_decoder"].items()
        if not token["content"].startswith("<action_")
    }


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (("--precision", "fp16"), "target 'cpu': expected an NVIDIA device for a checkpoint"),
        (
            (*ORIN, "--precision", "fp8"),
            "'fp8' on agx-orin-64 (Jetson AGX Orin 64 GB, SM 8.7): expected one of fp16, int8",
        ),
        ((*ORIN, "--precision", "int8"), "expected fp16, int8_sq for vision in a checkpoint"),
        ((*ORIN, "--precision", "fp16/int8"), "expected fp16, int8_sq, int4_awq for language"),
        ((*ORIN, "--precision", "int8_wo"), "expected fp16, int8_sq, int4_awq for language"),
        ((*ORIN, "--precision", "int4_awq/int4_awq"), "got 'int4_awq'"),
        ((*ORIN, "--precision", "int8_sq,text_head=int8_sq"), "expected fp16 for text_head"),
        ((*ORIN, "--precision", "int8_sq,kv=int8"), "expected keys and values (kv) in auto in"),
        ((*ORIN, "--precision", "int4_awq", "--int4-block", "64"), "int4 block 64: expected 128"),
        ((*ORIN, "--precision", "int4_awq"), "precision int4_awq: expected --calibration"),
        (
            ("--target", "h100", "--precision", "fp8"),
            "precision fp8: expected --calibration",
        ),
        (("--target", "h100", "--precision", "fp16,kv=fp8"), "kv=fp8: expected --calibration"),
        (
            (*ORIN, "--precision", "fp16", "--calibration", "somewhere"),
            "precision fp16: expected no --calibration",
        ),
    ],
)
def test_what_no_reader_has_is_refused_before_any_work(demo, invoke, tmp_path, options, expected):
    given = ["export", "checkpoint", "--checkpoint", tmp_path / "no", "--config", tmp_path / "no"]
    said = invoke.refused(8, *given, *options, "--out", tmp_path / "c")
    assert expected in said
    assert not (tmp_path / "c").exists()


@pytest.mark.parametrize("name", [name for name, target in TARGETS.items() if target.sm == 87])
def test_no_orin_gets_fp8(demo, invoke, tmp_path, name):
    options = ["--target", name, "--precision", "fp8", "--calibration", tmp_path]
    said = invoke.refused(8, *words(demo, tmp_path / "c", *options))
    assert f"'fp8' on {name}" in said


def test_the_readers_of_int8_weights_alone_are_on_other_devices(demo, invoke, tmp_path):
    options = ("--target", "rtx-sm89", "--precision", "int8_wo")
    code, _, said = invoke(*words(demo, tmp_path / "c", *options))
    assert code == 0, said


def test_a_calibration_of_another_checkpoint_is_refused(demo, invoke, tmp_path, calibration):
    other = tmp_path / "other"
    shutil.copytree(calibration, other)
    record = json.loads((other / "calibration.json").read_text())
    record["checkpoint"] = "0" * 64
    (other / "calibration.json").write_text(json.dumps(record))
    chosen = ("--precision", "int8_sq", "--calibration", other)
    said = invoke.refused(14, *words(demo, tmp_path / "c", *ORIN, *chosen))
    assert "expected a calibration of the checkpoint with sha256" in said
    assert not (tmp_path / "c").exists()


def test_what_fails_on_the_way_leaves_nothing(demo, invoke, tmp_path, calibration):
    damaged = tmp_path / "damaged"
    shutil.copytree(calibration, damaged)
    (damaged / "model.layers.3.safetensors").unlink()
    chosen = ("--precision", "int8_sq", "--calibration", damaged)
    said = invoke.refused(14, *words(demo, tmp_path / "c", *ORIN, *chosen))
    assert "model.layers.3.safetensors" in said
    assert {path.name for path in tmp_path.iterdir()} == {"damaged"}


def test_a_folder_with_something_in_it_is_not_touched(demo, invoke, tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    said = invoke.refused(10, *words(demo, tmp_path, *ORIN, "--precision", "fp16"))
    assert "expected a new or empty folder" in said
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


@pytest.mark.parametrize(
    ("precision", "expected"),
    [
        (
            "int8_wo,model.layers.1.self_attn.q_proj=fp16",
            r"model\.layers\.1\.self_attn\.q_proj in fp16, .*k_proj in int8_wo",
        ),
        ("int4_awq", r"int4_awq of model\.layers\.0\.self_attn\.q_proj: .* blocks of 96 .* 256"),
    ],
)
def test_layers_that_cannot_have_a_precision_are_named(model, precision, expected):
    settings = Settings("c", "rtx-sm89", precision, int4_block=96)
    with pytest.raises(TargetError, match=expected):
        unified_weights(model, settings, NoProgress())


def test_outputs_that_int4_cannot_pack_are_named(model, monkeypatch):
    monkeypatch.setattr(unified, "INT4_OUTPUTS", 384)
    settings = Settings("c", "rtx-sm89", "int4_awq,attention=fp16,model.layers.0=fp16")
    with pytest.raises(TargetError, match=r"layers\.1\.mlp\.down_proj: .* blocks of 384, got 768 "):
        unified_weights(model, settings, NoProgress())
