from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from autovla_rt.errors import CheckpointError
from autovla_rt.export.checkpoint import check_vocabulary, open_checkpoint
from autovla_rt.export.tensors.lora import LoraSettings


class TestHuggingFaceFolder:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
    def test_reads_what_transformers_saved(
        self, assert_equal_to_torch, torch_files, tiny_geometry, tmp_path, dtype
    ):
        model = torch_files.qwen_model(tiny_geometry).to(dtype)
        model.save_pretrained(tmp_path)
        with open_checkpoint(tmp_path, geometry=tiny_geometry) as checkpoint:
            assert_equal_to_torch(checkpoint, torch_files.old_names(model.state_dict()))
            assert str(checkpoint.info("model.norm.weight").dtype) == str(dtype).split(".")[1]

    def test_reads_shards(
        self, assert_equal_to_torch, torch_files, tiny_geometry, tiny_state, tmp_path
    ):
        torch_files.qwen_model(tiny_geometry).save_pretrained(tmp_path, max_shard_size="60KB")
        assert len(list(tmp_path.glob("*.safetensors"))) > 2
        with open_checkpoint(tmp_path, geometry=tiny_geometry) as checkpoint:
            assert_equal_to_torch(checkpoint, tiny_state)

    def test_requires_the_head_of_an_untied_model(
        self, refusal, torch_files, tiny_geometry, tmp_path
    ):
        untied = tiny_geometry.model_copy(
            update={
                "language": tiny_geometry.language.model_copy(update={"tie_word_embeddings": False})
            }
        )
        model = torch_files.qwen_model(untied)
        model.save_pretrained(tmp_path / "untied")
        with open_checkpoint(tmp_path / "untied", geometry=untied) as checkpoint:
            head = checkpoint.read("lm_head.weight")
        assert np.array_equal(head, model.lm_head.weight.detach().numpy())
        torch_files.qwen_model(tiny_geometry).save_pretrained(tmp_path / "tied")
        assert "missing (1):\nlm_head.weight [200, 48]" in refusal(tmp_path / "tied", untied)

    def test_names_what_a_folder_without_weights_holds(self, refusal, tiny_geometry, tmp_path):
        (tmp_path / "pytorch_model.bin").touch()
        message = refusal(tmp_path, tiny_geometry)
        assert "found pytorch_model.bin" in message
        assert "safe_serialization=True" in message

    def test_refuses_single_file_beside_an_index(
        self, refusal, random_checkpoint, tiny_geometry, tmp_path
    ):
        random_checkpoint.write_hf_folder(tmp_path, tiny_geometry, 0)
        (tmp_path / "model.safetensors.index.json").write_text("{}")
        assert "both" in refusal(tmp_path, tiny_geometry)


class TestLightningFile:
    @pytest.mark.parametrize("prefix", ["autovla.vlm.", "drivevla.vlm."])
    @pytest.mark.parametrize("layout", ["old", "new"])
    def test_reads_what_torch_saved(
        self, assert_equal_to_torch, torch_files, tiny_geometry, tmp_path, prefix, layout
    ):
        state = torch_files.qwen_model(tiny_geometry).state_dict()
        old = torch_files.old_names(state)
        path = torch_files.save_lightning(
            tmp_path / "x.ckpt",
            old if layout == "old" else state,
            prefix,
            optimizer_states=[{"state": {0: {"exp_avg": torch.ones(3)}}}],
            hyper_parameters={"model": {"use_cot": True}},
        )
        with open_checkpoint(path, geometry=tiny_geometry) as checkpoint:
            assert_equal_to_torch(checkpoint, old)

    @pytest.mark.parametrize(
        ("extra", "wanted"),
        [
            ({"hyper_parameters": {"model": {"use_cot": True}}}, {"model": {"use_cot": True}}),
            (
                {"hyper_parameters": argparse.Namespace(config=argparse.Namespace(a=[1, 2]))},
                {"config": {"a": [1, 2]}},
            ),
            ({"hyper_parameters": {}}, None),
            ({"hyper_parameters": 3}, None),
            ({}, None),
        ],
        ids=["dict", "namespace", "empty", "number", "none"],
    )
    def test_states_its_training_config(
        self, torch_files, tiny_geometry, tiny_state, tmp_path, extra, wanted
    ):
        path = torch_files.save_lightning(tmp_path / "x.ckpt", tiny_state, "autovla.vlm.", **extra)
        with open_checkpoint(path, geometry=tiny_geometry) as checkpoint:
            assert checkpoint.stated_config == wanted

    def test_reads_without_torch(self, torch_files, tiny_geometry, tiny_state, tmp_path):
        path = torch_files.save_lightning(tmp_path / "x.ckpt", tiny_state, "autovla.vlm.")
        program = (
            "import sys; sys.modules['torch'] = None\n"
            "from pathlib import Path\n"
            "from autovla_rt.config import Geometry\n"
            "from autovla_rt.export.checkpoint import open_checkpoint\n"
            "geometry = Geometry.model_validate_json(sys.argv[2])\n"
            "checkpoint = open_checkpoint(Path(sys.argv[1]), geometry=geometry)\n"
            "print(checkpoint.read('model.norm.weight').tobytes().hex())"
        )
        arguments = [sys.executable, "-c", program, str(path), tiny_geometry.model_dump_json()]
        printed = subprocess.run(arguments, check=True, capture_output=True, text=True).stdout
        assert bytes.fromhex(printed) == tiny_state["model.norm.weight"].numpy().tobytes()

    def test_reads_parameters_views_and_transposed_tensors(
        self, assert_equal_to_torch, torch_files, tiny_geometry, tiny_state, tmp_path
    ):
        name = "model.layers.0.mlp.down_proj.weight"
        strange = dict(tiny_state)
        strange[name] = tiny_state[name].t().contiguous().t()
        stacked = torch.stack([torch.zeros(48), tiny_state["model.norm.weight"]])
        strange["model.norm.weight"] = torch.nn.Parameter(stacked)[1]
        strange["visual.merger.ln_q.weight"] = torch.nn.Parameter(
            tiny_state["visual.merger.ln_q.weight"]
        )
        assert not strange[name].is_contiguous()
        path = torch_files.save_lightning(tmp_path / "x.ckpt", strange, "autovla.vlm.")
        with open_checkpoint(path, geometry=tiny_geometry) as checkpoint:
            assert_equal_to_torch(checkpoint, tiny_state)
            rows = checkpoint.read_rows(name, 3, 7)
        assert np.array_equal(rows, tiny_state[name][3:7].numpy())

    def test_takes_the_vocabulary_from_the_embedding(
        self, torch_files, tiny_geometry, tiny_state, tmp_path
    ):
        base = tiny_geometry.model_copy(
            update={"language": tiny_geometry.language.model_copy(update={"vocab_size": 151936})}
        )
        path = torch_files.save_lightning(tmp_path / "x.ckpt", tiny_state, "autovla.vlm.")
        with open_checkpoint(path, geometry=base) as checkpoint:
            assert checkpoint.geometry == tiny_geometry

    def test_ignores_the_buffers_of_grpo_by_exact_name(
        self, refusal, torch_files, tiny_geometry, tiny_state, tmp_path
    ):
        state = {f"autovla.vlm.{name}": tensor for name, tensor in tiny_state.items()}
        state["training_reward_buffer"] = torch.zeros(100)
        state["sliding_idx"] = state["window_count"] = torch.zeros(1, dtype=torch.long)
        path = torch_files.save_lightning(tmp_path / "x.ckpt", state, "")
        open_checkpoint(path, geometry=tiny_geometry).close()
        state["autovla.vlm.sliding_idx"] = state["sliding_idx"]
        torch_files.save_lightning(path, state, "")
        assert "left over (1):\nautovla.vlm.sliding_idx [1] int64" in refusal(path, tiny_geometry)

    def test_accepts_a_stored_head_that_equals_the_embedding(
        self, torch_files, tiny_geometry, tiny_state, tmp_path
    ):
        state = {**tiny_state, "lm_head.weight": tiny_state["lm_head.weight"].clone()}
        path = torch_files.save_lightning(tmp_path / "x.ckpt", state, "autovla.vlm.")
        with open_checkpoint(path, geometry=tiny_geometry) as checkpoint:
            assert "lm_head.weight" not in checkpoint.names

    def test_refuses_a_head_that_differs_from_the_embedding(
        self, refusal, torch_files, tiny_geometry, tiny_state, tmp_path
    ):
        head = tiny_state["lm_head.weight"].clone()
        head[117, 5] += 1e-6 + head[117, 5].abs() * 1e-6
        path = torch_files.save_lightning(
            tmp_path / "x.ckpt", {**tiny_state, "lm_head.weight": head}, "autovla.vlm."
        )
        assert "row 117" in refusal(path, tiny_geometry)
        torch_files.save_lightning(
            path, {**tiny_state, "lm_head.weight": head.half()}, "autovla.vlm."
        )
        assert "float32 and float16" in refusal(path, tiny_geometry)


class TestVerification:
    def test_lists_missing_left_over_and_unfit_tensors(
        self, refusal, torch_files, tiny_geometry, tiny_state, tmp_path
    ):
        state = dict(tiny_state)
        del state["visual.blocks.1.attn.qkv.bias"]
        state["model.layers.2.mlp.up_proj.weight"] = torch.zeros(72, 48)
        state["model.norm.weight"] = torch.zeros(47)
        state["visual.merger.mlp.0.weight"] = torch.zeros(128, 128, dtype=torch.int8)
        path = torch_files.save_lightning(tmp_path / "x.ckpt", state, "autovla.vlm.")
        message = refusal(path, tiny_geometry)
        assert "missing (1):\nvisual.blocks.1.attn.qkv.bias [96]\n" in message
        assert "left over (1):\nautovla.vlm.model.layers.2.mlp.up_proj.weight [72, 48]" in message
        assert "autovla.vlm.model.norm.weight [47] float32, expected shape [48]" in message
        assert "autovla.vlm.visual.merger.mlp.0.weight [128, 128] int8, expected type" in message

    def test_caps_long_lists_and_counts_the_rest(
        self, refusal, torch_files, tiny_geometry, tiny_state, tmp_path
    ):
        path = torch_files.save_lightning(tmp_path / "x.ckpt", tiny_state, "unknown.")
        message = refusal(path, tiny_geometry)
        assert "missing (56):" in message
        assert "left over (57):" in message
        assert "... and 36 more" in message
        assert message.count("\n") < 60

    def test_refuses_two_layouts_in_one_file(
        self, refusal, torch_files, tiny_geometry, tiny_state, tmp_path
    ):
        state = {**tiny_state, "model.language_model.norm.weight": tiny_state["model.norm.weight"]}
        path = torch_files.save_lightning(tmp_path / "x.ckpt", state, "autovla.vlm.")
        message = refusal(path, tiny_geometry)
        assert "autovla.vlm.model.norm.weight, autovla.vlm.model.language_model.norm" in message

    def test_actions_must_be_the_last_rows(self):
        check_vocabulary(153713, 151665, 2048)
        with pytest.raises(CheckpointError, match=r"151936 rows.*151665 \+ 2048 actions = 153713"):
            check_vocabulary(151936, 151665, 2048)


class TestReading:
    @pytest.fixture(scope="class")
    @staticmethod
    def checkpoint(random_checkpoint, tiny_geometry, tmp_path_factory):
        path = tmp_path_factory.mktemp("rows") / "x.ckpt"
        random_checkpoint.write_lightning(path, tiny_geometry, 0, layout="lora")
        with open_checkpoint(path, geometry=tiny_geometry, lora=LoraSettings(16)) as checkpoint:
            yield checkpoint

    @pytest.mark.parametrize(
        "name", ["model.embed_tokens.weight", "model.layers.0.self_attn.q_proj.weight"]
    )
    def test_rows_are_those_of_the_whole_tensor(self, checkpoint, name):
        whole = checkpoint.read(name)
        count = checkpoint.shape(name)[0]

        @given(st.tuples(st.integers(0, count), st.integers(0, count)).map(sorted))
        def check(bounds):
            start, stop = bounds
            rows = checkpoint.read_rows(name, start, stop)
            assert rows.dtype == checkpoint.info(name).dtype
            assert rows.shape == (stop - start, *whole.shape[1:])
            assert np.array_equal(rows, whole[start:stop])

        check()

    @pytest.mark.parametrize("bounds", [(0, 201), (-1, 3), (5, 4)])
    def test_rows_outside_the_tensor_are_refused(self, checkpoint, bounds):
        with pytest.raises(IndexError, match="which has 200"):
            checkpoint.read_rows("model.embed_tokens.weight", *bounds)

    def test_only_the_rows_asked_for_are_in_memory(self, random_checkpoint, tmp_path):
        geometry = random_checkpoint.GEOMETRY_3B
        language = geometry.language.model_copy(update={"num_hidden_layers": 1})
        vision = geometry.vision.model_copy(update={"depth": 1, "fullatt_block_indexes": (0,)})
        small = geometry.model_copy(update={"language": language, "vision": vision})
        with open(tmp_path / "model.safetensors", "wb") as file:  # sparse: 1.2 GB of zeros
            write_sparse_safetensors(file, random_checkpoint.expected_shapes(small))
        with open_checkpoint(tmp_path, geometry=small) as checkpoint:
            tracemalloc.start()
            rows = checkpoint.read_rows("model.embed_tokens.weight", 150_000, 150_256)
            _, peak = tracemalloc.get_traced_memory()
            tracemalloc.stop()
        assert rows.nbytes == 256 * 2048 * 4
        assert peak < 1.5 * rows.nbytes

    def test_a_file_cut_short_while_open_is_an_error(
        self, random_checkpoint, tiny_geometry, tmp_path
    ):
        random_checkpoint.write_hf_folder(tmp_path, tiny_geometry, 0)
        with open_checkpoint(tmp_path, geometry=tiny_geometry) as checkpoint:
            os.truncate(tmp_path / "model.safetensors", 20_000)
            with pytest.raises(CheckpointError, match="truncated"):
                checkpoint.read("model.norm.weight")

    def test_close_releases_the_file(self, refusal, random_checkpoint, tiny_geometry, tmp_path):
        random_checkpoint.write_hf_folder(tmp_path, tiny_geometry, 0)
        before = open_files()
        with open_checkpoint(tmp_path, geometry=tiny_geometry):
            assert open_files() == before + 1
        refusal(tmp_path, random_checkpoint.GEOMETRY_3B)
        assert open_files() == before


def open_files() -> int:
    """Count this process's file descriptors."""
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def write_sparse_safetensors(file, shapes) -> None:
    """Write a header for float32 tensors and leave the data a hole."""
    header, end = {}, 0
    for name, shape in shapes.items():
        begin, end = end, end + 4 * int(np.prod(shape))
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    file.write(len(text).to_bytes(8, "little") + text)
    file.truncate(file.tell() + end)


class TestFingerprint:
    def test_of_one_file_is_its_sha256(self, random_checkpoint, tiny_geometry, tmp_path):
        path = tmp_path / "x.ckpt"
        random_checkpoint.write_lightning(path, tiny_geometry, 0)
        with open_checkpoint(path, geometry=tiny_geometry) as checkpoint:
            assert checkpoint.fingerprint() == hashlib.sha256(path.read_bytes()).hexdigest()

    def test_of_shards_is_that_of_their_list(self, random_checkpoint, tiny_geometry, tmp_path):
        random_checkpoint.write_hf_folder(tmp_path, tiny_geometry, 0, shard_bytes=60_000)
        names = [path.name for path in sorted(tmp_path.glob("*.safetensors"))]
        printed = subprocess.run(
            ["sha256sum", *names], cwd=tmp_path, check=True, capture_output=True
        ).stdout
        with open_checkpoint(tmp_path, geometry=tiny_geometry) as checkpoint:
            assert checkpoint.fingerprint() == hashlib.sha256(printed).hexdigest()
