"""Graphs of TensorRT Edge-LLM's exporter: exported, read, and made to run without its plugins."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
from demo_engine import RECIPE, REPO
from onnx import AttributeProto, FunctionProto, ModelProto, NodeProto, TensorProto, numpy_helper
from onnx.helper import make_function, make_node, make_opsetid
from safetensors import safe_open

from autovla_rt.edgellm_export import check_edgellm, export_edgellm
from autovla_rt.export.build import camera_layout
from autovla_rt.export.open_model import ModelFiles, open_model
from autovla_rt.export.progress import NoProgress
from autovla_rt.export.settings import Settings
from autovla_rt.export.unified_settings import check_unified

EXPORTER = REPO / ".venv-edgellm" / "bin" / "tensorrt-edgellm-export"

ELEMENTWISE = {
    *("Add", "Cast", "Concat", "Cos", "Gather", "GatherND", "Gelu", "Mul", "Neg", "Pow"),
    *("Reciprocal", "ReduceMean", "Reshape", "Shape", "Sigmoid", "Sin", "Slice", "Split", "Sqrt"),
    *("Transpose", "Unsqueeze"),
}
"""Operators that multiply by no weights and attend to nothing."""

CONSTANTS = 5
"""Elements that a constant which is no weight has at most: shapes, axes, epsilons."""


class Exported:
    """A folder of `export edgellm`: the checkpoint, and the graphs that were made of it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        with safe_open(folder / "checkpoint" / "model.safetensors", "pt") as file:
            self.ours = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        self.language, self.vision = (
            onnx.load(folder / "onnx" / part / "model.onnx") for part in ("llm", "visual")
        )
        self.held = {
            **{of.name.removeprefix("_model."): of for of in self.language.graph.initializer},
            **{f"visual.{of.name}": of for of in self.vision.graph.initializer},
        }
        self._compared: set[str] = set()

    def theirs(self, name: str) -> np.ndarray:
        """What a graph holds under a name, which then counts as compared."""
        self._compared.add(name)
        return numpy_helper.to_array(self.held[name])

    def require_same(self, name: str, expected: np.ndarray | None = None) -> None:
        """Require a graph's tensor to be ours of that name, or the expected, bit for bit."""
        expected = self.ours[name].numpy() if expected is None else expected
        found = self.theirs(name)
        np.testing.assert_array_equal(found.reshape(expected.shape), expected, err_msg=name)

    def require_others_same(self) -> None:
        """Require all tensors that both have by one name, and were not compared yet, to be equal.

        Then nothing is left in the graphs but small constants and zeros.
        """
        for name in (self.held.keys() & self.ours.keys()) - self._compared:
            self.require_same(name)
        left = {name: self.held[name] for name in self.held.keys() - self._compared}
        large = {name: of for name, of in left.items() if math.prod(of.dims) > CONSTANTS}
        # Windows have a carrier of zeros, whose length alone is read.
        unknown = {name: of.dims for name, of in large.items() if numpy_helper.to_array(of).any()}
        assert not unknown, unknown

    def embedding(self) -> np.ndarray:
        """The table that Edge-LLM looks tokens up in."""
        with safe_open(self.folder / "onnx" / "llm" / "embedding.safetensors", "np") as file:
            (name,) = file.keys()
            return file.get_tensor(name)


def export_for_edgellm(demo, folder: Path, precision: str, calibration=None, target="agx-orin-64"):
    """Write a folder of the demo checkpoint with NVIDIA's graphs; skips without its exporter."""
    if not EXPORTER.exists():
        pytest.skip(f"{EXPORTER} is missing: make .venv-edgellm/stamp")
    sizes = dict.fromkeys(("front", "front_left", "front_right"), (392, 224))
    settings = Settings("c", target, precision, frame_sizes=sizes, calibration=calibration)
    check_unified(settings)
    check_edgellm(target, EXPORTER)
    model = open_model(ModelFiles(demo.base, demo.config, recipe=RECIPE))
    folder.mkdir()
    with model.checkpoint:
        cameras = camera_layout(model, settings)
        export_edgellm(model, settings, cameras, folder, EXPORTER, NoProgress())
    return Exported(folder)


def signature(values) -> dict[str, tuple[int, tuple[int | str, ...]]]:
    """Type and shape of a graph's inputs or outputs, in their order."""
    return {
        of.name: (
            of.type.tensor_type.elem_type,
            tuple(d.dim_value or d.dim_param for d in of.type.tensor_type.shape.dim),
        )
        for of in values
    }


def heavy_operators(model: ModelProto) -> Counter[str]:
    """Count what is not elementwise, by operator, plugins with their domain."""
    names = (f"{of.domain}::{of.op_type}".removeprefix("::") for of in model.graph.node)
    return Counter(name for name in names if name not in ELEMENTWISE)


def runnable(model: ModelProto) -> ModelProto:
    """Give the attention plugins bodies of standard operators; the graph itself stays as it is."""
    copy = ModelProto()
    copy.CopyFrom(model)
    makers = {"ViTAttentionPlugin": _vision_attention, "AttentionPlugin": _causal_attention}
    for kind in {of.op_type for of in copy.graph.node} & makers.keys():
        node = next(of for of in copy.graph.node if of.op_type == kind)
        function = makers[kind](len(node.input))
        known = set(function.attribute)
        function.attribute.extend(of.name for of in node.attribute if of.name not in known)
        copy.functions.append(function)
    return copy


def _constant(name: str, **value: object) -> NodeProto:
    return make_node("Constant", [], [name], **value)


def _given(node: NodeProto, **attributes: str) -> NodeProto:
    """Give a node attributes that are those of the plugin: scales are floats, others integers."""
    for name, of in attributes.items():
        kind = AttributeProto.FLOAT if of == "attention_scale" else AttributeProto.INT
        node.attribute.append(AttributeProto(name=name, ref_attr_name=of, type=kind))
    return node


def _function(name: str, inputs, outputs, nodes, attributes) -> FunctionProto:
    return make_function(
        "trt_edgellm", name, inputs, outputs, nodes, [make_opsetid("", 24)], attributes
    )


def _vision_attention(count: int) -> FunctionProto:
    """Attention within the segments that `cu_seqlens` borders, [S, H, D] each, in float32.

    As the plugin's eager form in the package (tensorrt_edgellm/models/ops.py) computes it.
    """
    inputs = ["q", "k", "v", "cu_seqlens", "max_seqlen"]
    assert count == len(inputs)
    nodes = [
        *(make_node("Cast", [of], [f"{of}32"], to=TensorProto.FLOAT) for of in "qkv"),
        make_node("Transpose", ["q32"], ["queries"], perm=[1, 0, 2]),
        make_node("Transpose", ["k32"], ["keys"], perm=[1, 2, 0]),
        make_node("Transpose", ["v32"], ["values"], perm=[1, 0, 2]),
        *(_constant(name, value_int=of) for name, of in (("zero", 0), ("one", 1))),
        *(_constant(name, value_ints=[of]) for name, of in (("axis0", 0), ("axis1", 1))),
        _constant("nothing", value_float=0.0),
        _constant("never", value_float=-math.inf),
        _given(_constant("scale"), value_float="attention_scale"),
        make_node("Shape", ["q"], ["length1"], start=0, end=1),
        make_node("Squeeze", ["length1", "axis0"], ["length"]),
        make_node("Range", ["zero", "length", "one"], ["index"]),
        make_node("Cast", ["cu_seqlens"], ["borders"], to=TensorProto.INT64),
        make_node("Unsqueeze", ["borders", "axis1"], ["column"]),
        make_node("LessOrEqual", ["column", "index"], ["passed"]),
        make_node("Cast", ["passed"], ["ones"], to=TensorProto.INT64),
        make_node("ReduceSum", ["ones", "axis0"], ["segment"], keepdims=0),
        make_node("Unsqueeze", ["segment", "axis1"], ["segments"]),
        make_node("Equal", ["segments", "segment"], ["together"]),
        make_node("Where", ["together", "nothing", "never"], ["mask"]),
        make_node("MatMul", ["queries", "keys"], ["products"]),
        make_node("Mul", ["products", "scale"], ["scaled"]),
        make_node("Add", ["scaled", "mask"], ["masked"]),
        make_node("Softmax", ["masked"], ["shares"], axis=-1),
        make_node("MatMul", ["shares", "values"], ["mixed"]),
        make_node("Transpose", ["mixed"], ["rows"], perm=[1, 0, 2]),
        make_node("Cast", ["rows"], ["out"], to=TensorProto.FLOAT16),
    ]
    return _function("ViTAttentionPlugin", inputs, ["out"], nodes, ["attention_scale"])


def _causal_attention(count: int) -> FunctionProto:
    """Rotation and causal attention of one sequence with an empty past, in float32.

    A row of `rope` holds the cosines, then the sines of its token; the cache is passed through.
    """
    inputs = ["qkv", "past", "query_lengths", "rope"]
    inputs += [f"unread_{index}" for index in range(count - len(inputs))]
    heads = {"queries": "num_q_heads", "keys": "num_kv_heads"}
    nodes = [
        *(
            _given(_constant(name), value_int=of)
            for name, of in (("hq", "num_q_heads"), ("hkv", "num_kv_heads"), ("d", "head_size"))
        ),
        _constant("axis0", value_ints=[0]),
        _constant("all", value_ints=[-1]),
        make_node("Mul", ["hq", "d"], ["wq"]),
        make_node("Mul", ["hkv", "d"], ["wkv"]),
        *(make_node("Unsqueeze", [of, "axis0"], [f"{of}1"]) for of in ("wq", "wkv", "hq", "d")),
        make_node("Concat", ["wq1", "wkv1", "wkv1"], ["widths"], axis=0),
        make_node("Concat", ["all", "hq1", "d1"], ["shape"], axis=0),
        make_node("Cast", ["qkv"], ["qkv32"], to=TensorProto.FLOAT),
        make_node("Unsqueeze", ["qkv32", "axis0"], ["batch"]),
        make_node("Split", ["batch", "widths"], ["queries", "keys", "values"], axis=2),
        make_node("Unsqueeze", ["rope", "axis0"], ["table"]),
        make_node("Split", ["table"], ["cos", "sin"], axis=2, num_outputs=2),
        *(
            _given(
                make_node("RotaryEmbedding", [of, "cos", "sin"], [f"r_{of}"]), num_heads=count_of
            )
            for of, count_of in heads.items()
        ),
        _given(
            make_node("Attention", ["r_queries", "r_keys", "values"], ["mixed"], is_causal=1),
            scale="attention_scale",
            q_num_heads="num_q_heads",
            kv_num_heads="num_kv_heads",
        ),
        make_node("Reshape", ["mixed", "shape"], ["rows"]),
        make_node("Cast", ["rows"], ["out"], to=TensorProto.FLOAT16),
        make_node("Identity", ["past"], ["present"]),
    ]
    attributes = ["num_q_heads", "num_kv_heads", "head_size", "attention_scale"]
    return _function("AttentionPlugin", inputs, ["out", "present"], nodes, attributes)
