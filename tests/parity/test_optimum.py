"""The language graph against a second reference: optimum's ONNX export of a plain Qwen2 decoder.

With plain rotary tables the language graph is Qwen2's, so another exporter's graph of the same
weights, run in the same ONNX Runtime, must give the same logits at every position.
"""

import numpy as np
import pytest
import torch
from optimum.exporters.onnx import onnx_export_from_model
from safetensors.numpy import save_file
from transformers import Qwen2Config, Qwen2ForCausalLM

from autovla_rt.config import Geometry, LanguageGeometry, Precision, VisionGeometry
from autovla_rt.export.emit.graphs import emit_language
from autovla_rt.export.emit.tables import emit_tables
from autovla_rt.export.graph.dialect import Formats
from autovla_rt.export.graph.ort import DIALECT
from autovla_rt.export.passes.static_mrope import mrope_positions, rotary_tables
from autovla_rt.export.weight_source import ModelWeights
from autovla_rt.ort_session import open_session
from autovla_rt.runtime.backends.ort import OrtLanguage

# The other exporter traces, and warns of it at length.
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

CAPACITY = 96
LANGUAGE = LanguageGeometry(
    hidden_size=128,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=1,
    head_dim=32,
    intermediate_size=256,
    vocab_size=640,
    rms_norm_eps=1e-6,
    rope_theta=1e6,
    mrope_section=(4, 6, 6),
    tie_word_embeddings=True,
)
VISION = VisionGeometry(
    depth=1,
    hidden_size=64,
    num_heads=1,
    intermediate_size=64,
    out_hidden_size=128,
    fullatt_block_indexes=(0,),
)
GEOMETRY = Geometry(vision=VISION, language=LANGUAGE)


class StateDict:
    """A transformers model as a tensor reader."""

    def __init__(self, model):
        self._tensors = {name: tensor.numpy() for name, tensor in model.state_dict().items()}

    def shape(self, name):
        return self._tensors[name].shape

    def read_rows(self, name, start, stop):
        return self._tensors[name][start:stop]


class Bundle:
    """The part of a bundle that the language backend reads."""

    def __init__(self, folder, precision):
        self.folder, self.precision, self.manifest = folder, precision, self
        self.geometry, self.kv_capacity, self.files = GEOMETRY, CAPACITY, {}

    def path(self, name):
        return self.folder / name


@pytest.fixture(scope="module")
def model():
    keys = LANGUAGE.model_dump(exclude={"mrope_section", "head_dim"})
    torch.manual_seed(0)
    model = Qwen2ForCausalLM(Qwen2Config(**keys, max_position_embeddings=512)).eval()
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            gain = 2 if "embed" in name else 1.5
            if tensor.ndim > 1:
                tensor.normal_(0, gain / tensor.shape[1] ** 0.5)
            elif name.endswith("bias"):
                tensor.normal_(0, 0.1)
    return model


def test_language_graph_equals_optimums_decoder(model, tmp_path):
    ids = np.random.default_rng(0).integers(0, 640, 48)
    onnx_export_from_model(
        model, tmp_path, task="text-generation", no_post_process=True, do_validation=False
    )
    (expected,) = open_session(tmp_path / "model.onnx", None).run(
        ["logits"],
        {
            "input_ids": ids[None],
            "attention_mask": np.ones((1, ids.size), np.int64),
            "position_ids": np.arange(ids.size)[None],
        },
    )
    assert expected.std() > 1
    precision = Precision(vision="fp32", language="fp32")
    weights = ModelWeights(StateDict(model), tied=True, action_start_id=512)
    emit_language(DIALECT, weights, GEOMETRY, Formats.uniform("fp32"), tmp_path)
    emit_tables(weights, GEOMETRY, precision, (), tmp_path)
    cos, sin = rotary_tables(GEOMETRY, mrope_positions(GEOMETRY, [], CAPACITY + 1))
    save_file({"cos": cos, "sin": sin}, tmp_path / "rotary.safetensors")
    engine = OrtLanguage(Bundle(tmp_path, precision))
    hidden = np.concatenate([engine.extend(engine.embed(part)) for part in np.split(ids, [30, 47])])
    np.testing.assert_allclose(engine.logits(hidden), expected[0], rtol=0, atol=2e-4)
