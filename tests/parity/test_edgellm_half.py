"""TensorRT Edge-LLM's graphs of our checkpoint in half precision: what they hold and compute.

Its exporter runs in an environment of its own (make .venv-edgellm/stamp). The graphs are run by
ONNX Runtime on the CPU, which computes float16 in float32; the attention plugins, which only
TensorRT has, get bodies of standard operators (tests/support/edgellm_graphs.py).
"""

import json
import os
import subprocess

import numpy as np
import onnx
import onnxruntime
import pytest
from demo_engine import FRAMES, RECIPE
from edgellm_graphs import (
    EXPORTER,
    export_for_edgellm,
    heavy_operators,
    runnable,
    signature,
)
from onnx import TensorProto, numpy_helper
from safetensors import safe_open

from autovla_rt.export.build import build_engine
from autovla_rt.export.open_model import ModelFiles, open_model
from autovla_rt.export.passes.static_mrope import VideoSpan, mrope_positions, rotary_tables
from autovla_rt.export.progress import NoProgress
from autovla_rt.export.settings import Settings
from autovla_rt.runtime.frames import FramePreprocessor
from autovla_rt.runtime.grammar import render
from autovla_rt.runtime.planner import Planner, load_tokenizer
from autovla_rt.runtime.scene import read_frames_dir

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.slow

DEPTH = 4
F16, F32 = TensorProto.FLOAT16, TensorProto.FLOAT
I32, I64 = TensorProto.INT32, TensorProto.INT64
CACHE = (F16, (2, "num_pages", 128, 2, 64))


@pytest.fixture(scope="module")
def exported(demo, tmp_path_factory):
    return export_for_edgellm(demo, tmp_path_factory.mktemp("edgellm") / "half", "fp16")


@pytest.fixture(scope="module")
def reference(exported):
    """Our checkpoint in transformers, computed in float32."""
    return transformers.Qwen2_5_VLForConditionalGeneration.from_pretrained(
        exported.folder / "checkpoint", dtype=torch.float32, attn_implementation="eager"
    ).eval()


@pytest.fixture(scope="module")
def planner(demo, tmp_path_factory):
    """Our own engine of the same checkpoint in float32."""
    model = open_model(ModelFiles(demo.base, demo.config, recipe=RECIPE))
    sizes = dict.fromkeys(("front", "front_left", "front_right"), (392, 224))
    folder = tmp_path_factory.mktemp("float") / "engine"
    with model.checkpoint:
        build_engine(model, Settings("e", "cpu", "fp32", frame_sizes=sizes), folder, NoProgress())
    return Planner.load(folder, threads=1)


def test_inputs_and_outputs(exported):
    sequences = ("num_sequences",)
    assert signature(exported.language.graph.input) == {
        "inputs_embeds": (F16, ("physical_tokens", 256)),
        **{f"past_key_values_{layer}": CACHE for layer in range(DEPTH)},
        "rope_rotary_cos_sin": (F32, ("physical_tokens", 64)),
        "positions": (I32, ("physical_tokens",)),
        "query_start_offsets": (I32, ("num_sequences + 1",)),
        "query_lengths": (I32, sequences),
        "past_lengths": (I32, sequences),
        "attention_sequence_lengths": (I32, sequences),
        "state_indices": (I32, sequences),
        "execution_phase_marker": (I32, ("execution_phase_extent",)),
        "context_sequence_count_carrier": (I32, ("num_context_sequences",)),
        "kv_page_table": (I32, ("num_sequences", 2, "max_pages_per_seq")),
        "logits_indices": (I64, sequences),
    }
    assert signature(exported.language.graph.output) == {
        "logits": (F32, ("num_sequences", 2585)),
        **{f"present_key_values_{layer}": CACHE for layer in range(DEPTH)},
    }
    assert signature(exported.vision.graph.input) == {
        "input": (F16, ("4*num_groups", 1176)),
        "rotary_pos_emb": (F32, ("4*num_groups", 32)),
        "cu_seqlens": (I32, ("batch_p1",)),
        "cu_window_seqlens": (I32, ("num_windows_p1",)),
        "window_index": (I64, ("num_groups",)),
        "reverse_window_index": (I64, ("num_groups",)),
        "max_seqlen_carrier": (I32, ("max_seqlen",)),
    }
    assert signature(exported.vision.graph.output) == {"output": (F16, ("num_groups", 256))}


def test_operators(exported):
    assert heavy_operators(exported.language) == {
        "trt_edgellm::AttentionPlugin": DEPTH,
        "MatMul": 5 * DEPTH,  # queries, keys and values in one
        "Gemm": 1,  # the head
    }
    assert heavy_operators(exported.vision) == {
        "trt_edgellm::ViTAttentionPlugin": DEPTH,
        "Gemm": 5 * DEPTH + 2,
        "Conv": 1,
    }


def test_weights(exported):
    """All of them: those that the exporter fused or renamed are found by their place."""
    ours = {name: of.numpy() for name, of in exported.ours.items()}
    expected = []
    for layer in (f"model.layers.{index}" for index in range(DEPTH)):
        attention = f"{layer}.self_attn"
        for kind in ("weight", "bias"):
            fused = [ours[f"{attention}.{letter}_proj.{kind}"] for letter in "qkv"]
            if kind == "weight":
                expected.append(np.concatenate(fused))
            else:
                name = f"{attention}.qkv_proj_fused.bias"
                exported.require_same(name, np.concatenate(fused))
        expected.append(ours[f"{attention}.o_proj.weight"])
        expected += [ours[f"{layer}.mlp.{of}_proj.weight"] for of in ("gate", "up", "down")]
    products = [of for of in exported.language.graph.node if of.op_type == "MatMul"]
    for node, matrix in zip(products, expected, strict=True):
        exported.require_same(node.input[1], matrix.T)
    exported.require_same("lm_head.weight", ours["model.embed_tokens.weight"])
    np.testing.assert_array_equal(exported.embedding(), ours["model.embed_tokens.weight"])
    exported.require_others_same()


def test_the_vision_graph_computes_our_features(reference, scene):
    with torch.no_grad():
        expected = reference.model.visual(scene.patches.float(), scene.grid).numpy()
    assert relative_error(scene.features, expected) < 1e-3
    assert relative_error(scene.features, scene.our_features) < 1e-3  # of weights in float32


def test_both_graphs_with_our_rotary_table_answer_as_our_engine(exported, reference, scene):
    """Greedily: behind every part of our engine's answer the graph chooses the action it has."""
    found = language_logits(exported, scene)
    with torch.no_grad():
        output = reference(
            input_ids=torch.from_numpy(scene.ids)[None],
            pixel_values_videos=scene.patches.float(),
            video_grid_thw=scene.grid,
            second_per_grid_ts=torch.ones(len(scene.grid)),
        )
    behind = len(scene.ids) - len(scene.answer)
    expected = output.logits[0, behind - 1 : -1].numpy()
    assert relative_error(found, expected) < 2e-3
    start = scene.planner.bundle.manifest.actions.action_start_id
    chosen = found[scene.answer >= start][:, start:].argmax(1) + start
    assert chosen.tolist() == scene.plan.action_tokens


def test_a_reduced_vocabulary_cuts_the_head_to_the_rows_of_an_answer(exported, tmp_path):
    """Edge-LLM's way to our action head, for answers without reasoning."""
    folder = exported.folder / "fast"
    options = ["--target-sm", "87", "--skip-visual", "--reduced-vocab-dir", folder]
    run_exporter(exported.folder / "checkpoint", tmp_path / "onnx", *options)
    graph = onnx.load(tmp_path / "onnx" / "llm" / "model.onnx").graph
    held = {of.name: of for of in graph.initializer}
    with safe_open(folder / "vocab_map.safetensors", "np") as file:
        kept = file.get_tensor("vocab_map")
    assert 2048 < len(kept) < 2048 + 64
    head = numpy_helper.to_array(held["_model.lm_head.weight"])
    np.testing.assert_array_equal(head, exported.ours["model.embed_tokens.weight"].numpy()[kept])
    assert signature(graph.output)["logits"] == (F32, ("num_sequences", len(kept)))
    config = json.loads((tmp_path / "onnx" / "llm" / "config.json").read_text())
    assert (config["vocab_size"], config["reduced_vocab_size"]) == (2585, len(kept))
    with safe_open(tmp_path / "onnx" / "llm" / "vocab_map.safetensors", "np") as file:
        np.testing.assert_array_equal(file.get_tensor("vocab_map"), kept)


class Scene:
    """The demo scene, our engine's answer to it, and what Edge-LLM's vision graph makes of it."""

    def __init__(self, exported, tower, planner):
        self.planner = planner
        request = read_frames_dir(FRAMES, velocity=None, acceleration=None, instruction=None)
        manifest = planner.bundle.manifest
        self.plan = planner.plan(request, mode="fast")
        prompt = planner.bundle.prompt()
        prompted = planner.encode(request)
        actions = "".join(
            f"<action_{of - manifest.actions.action_start_id}>" for of in self.plan.action_tokens
        )
        text = render(planner.bundle.recipe().answer.fast, actions=actions)
        self.answer = np.array(load_tokenizer(planner.bundle).encode(text).ids)
        self.ids = np.concatenate([prompted.ids, self.answer])
        frames = FramePreprocessor(manifest.preprocessing, manifest.geometry.vision)
        patches = [frames.patches(request.frames[of.name], of) for of in manifest.cameras]
        width = manifest.geometry.vision.patch_width
        self.patches = torch.from_numpy(np.concatenate([of.reshape(-1, width) for of in patches]))
        self.patches = self.patches.half()
        self.grid = torch.tensor([of.grid for of in manifest.cameras])
        self.features = vision_features(exported, tower, self.patches, self.grid)
        self.places = np.concatenate(
            [np.arange(of.start, of.start + of.count) for of in prompt.videos]
        )
        self.our_features = prompted.embeddings[self.places]
        grids = {of.name: of.grid for of in manifest.cameras}
        spans = [VideoSpan(of.start, grids[of.camera]) for of in prompt.videos]
        positions = mrope_positions(manifest.geometry, spans, len(self.ids))
        self.rotary = np.concatenate(rotary_tables(manifest.geometry, positions), axis=1)


@pytest.fixture(scope="module")
def scene(exported, reference, planner):
    return Scene(exported, reference.model.visual, planner)


def vision_features(exported, tower, patches, grid):
    """Run Edge-LLM's vision graph; its index inputs are transformers' own."""
    windows, borders = tower.get_window_index(grid)
    borders = torch.unique_consecutive(torch.tensor(borders, dtype=torch.int32))
    images = torch.repeat_interleave(grid[:, 1] * grid[:, 2], grid[:, 0])
    feed = {
        "input": patches,
        "rotary_pos_emb": tower.rot_pos_emb(grid).float(),
        "cu_seqlens": torch.nn.functional.pad(images.cumsum(0), (1, 0)).int(),
        "cu_window_seqlens": borders,
        "window_index": windows,
        "reverse_window_index": torch.argsort(windows),
        "max_seqlen_carrier": torch.zeros(int(images.max()), dtype=torch.int32),
    }
    (features,) = run(exported.vision, ["output"], {name: of.numpy() for name, of in feed.items()})
    return features


def language_logits(exported, scene):
    """Run Edge-LLM's language graph over prompt and answer, in one pass on an empty cache.

    Returns the logits from which each token of the answer is chosen.
    """
    count, answer = len(scene.ids), len(scene.answer)
    embedded = exported.embedding()[scene.ids]
    embedded[scene.places] = scene.features
    one, none = np.array([count], np.int32), np.zeros(1, np.int32)
    feed = {
        "inputs_embeds": embedded,
        "rope_rotary_cos_sin": scene.rotary,
        "positions": np.arange(count, dtype=np.int32),
        "query_start_offsets": np.array([0, count], np.int32),
        "query_lengths": one,
        "past_lengths": none,
        "attention_sequence_lengths": one,
        "state_indices": none,
        "execution_phase_marker": none,
        "context_sequence_count_carrier": none,
        "kv_page_table": np.zeros((1, 2, 1), np.int32),
        "logits_indices": np.arange(count - answer - 1, count - 1),
        **{
            f"past_key_values_{of}": np.zeros((2, 1, 128, 2, 64), np.float16) for of in range(DEPTH)
        },
    }
    return run(exported.language, ["logits"], feed)[0]


def run(model, outputs, feed):
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # it warns of float16 constants that it has no kernel to fold
    session = onnxruntime.InferenceSession(
        runnable(model).SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return session.run(outputs, feed)


def run_exporter(*words):
    environment = {name: of for name, of in os.environ.items() if name != "PYTHONPATH"}
    command = [EXPORTER, *words]
    done = subprocess.run(map(str, command), capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]


def relative_error(found, expected):
    difference = found.astype(np.float64) - expected
    return np.sqrt((difference**2).mean() / (expected.astype(np.float64) ** 2).mean())
