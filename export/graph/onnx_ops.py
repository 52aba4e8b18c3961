"""What the dialects that end up as ONNX share: nodes, constants, stored weights, the file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from autovla_rt.export.graph.dialect import Formats
from autovla_rt.export.graph.ops import FLOATS, Value
from autovla_rt.export.weight_file import ELEMENT_TYPES, WeightFile
from autovla_rt.export.weight_source import WeightSource


class OnnxOps:
    """Collects nodes for one graph; weights go to a WeightFile that several graphs may share.

    Attributes:
        opsets: Versions of the operators' domains; "" is the standard one.
        ir_version: Of the file.
    """

    opsets: ClassVar[Mapping[str, int]]
    ir_version: ClassVar[int]

    def __init__(self, source: WeightSource, weights: WeightFile, formats: Formats) -> None:
        self._source = source
        self._weights = weights
        self._formats = formats
        self._nodes: list[onnx.NodeProto] = []
        self._inputs: list[onnx.ValueInfoProto] = []
        self._outputs: list[onnx.ValueInfoProto] = []
        self._constants: dict[str, TensorProto] = {}
        self._external: set[str] = set()

    @property
    def source(self) -> WeightSource:
        """Where weights are read from."""
        return self._source

    @property
    def weights(self) -> WeightFile:
        """Where weights are written to."""
        return self._weights

    @property
    def formats(self) -> Formats:
        """Number formats of the graph."""
        return self._formats

    def node(
        self, operator: str, inputs: Sequence[Value], outputs: int = 1, **attributes: Any
    ) -> list[Value]:
        """Append one node of the standard domain."""
        return self._append("", operator, inputs, self._names(operator, outputs), attributes)

    def _names(self, operator: str, count: int) -> list[Value]:
        return [f"{operator}_{len(self._nodes)}_{index}" for index in range(count)]

    def _append(
        self,
        domain: str,
        operator: str,
        inputs: Sequence[Value],
        outputs: list[Value],
        attributes: dict[str, Any],
    ) -> list[Value]:
        """Append a node with named outputs; an output named "" is left out."""
        name = f"{operator}_{len(self._nodes)}"
        self._nodes.append(
            helper.make_node(operator, list(inputs), outputs, name, domain=domain, **attributes)
        )
        return outputs

    def input(self, name: str, dtype: str, shape: Sequence[int | str]) -> Value:
        """Declare a graph input; a string names a dynamic dimension."""
        element = ELEMENT_TYPES[self._formats.floats if dtype == FLOATS else dtype]
        self._inputs.append(helper.make_tensor_value_info(name, element, list(shape)))
        return name

    def output(self, value: Value, name: str, dtype: str, shape: Sequence[int | str]) -> None:
        """Declare a graph output."""
        self._nodes.append(helper.make_node("Identity", [value], [name], f"output_{name}"))
        self._declare_output(name, dtype, shape)

    def _declare_output(self, name: str, dtype: str, shape: Sequence[int | str]) -> None:
        """Make a node's output, which has this name already, one of the graph."""
        self._outputs.append(helper.make_tensor_value_info(name, ELEMENT_TYPES[dtype], list(shape)))

    def constant(self, name: str, array: NDArray[np.generic]) -> Value:
        """Make a small constant, kept inside the graph."""
        tensor = numpy_helper.from_array(np.ascontiguousarray(array), name)
        if self._constants.setdefault(name, tensor) != tensor:
            raise ValueError(f"two different constants are called {name}")
        return name

    def stored(self, name: str) -> Value:
        """Refer to a tensor of the weight file."""
        self._external.add(name)
        return name

    def weight(self, name: str) -> Value:
        """Store one small tensor of the checkpoint (a norm, a bias) as float32."""
        if name not in self._weights:
            array = self._source.rows(name, 0, self._source.shape(name)[0])
            self._weights.add(name, "float32", array.shape, [array])
        return self.stored(name)

    def reshape(self, x: Value, shape: Sequence[int]) -> Value:
        """Reshape; -1 is inferred."""
        name = "shape_" + "_".join(str(size) for size in shape)
        return self.node("Reshape", [x, self.constant(name, np.array(shape, np.int64))])[0]

    def gather(self, x: Value, index: Value, axis: int) -> Value:
        """Select by a constant index."""
        return self.node("Gather", [x, index], axis=axis)[0]

    def split(self, x: Value, parts: int, axis: int) -> list[Value]:
        """Cut into equal parts."""
        return self.node("Split", [x], parts, axis=axis, num_outputs=parts)

    def slice(self, x: Value, start: int, stop: int, axis: int) -> Value:
        """x[start:stop] along one axis."""
        bounds = [self.integers(bound) for bound in (start, stop, axis)]
        return self.node("Slice", [x, *bounds])[0]

    def concat(self, parts: Sequence[Value], axis: int) -> Value:
        """Join along one axis."""
        return self.node("Concat", parts, axis=axis)[0]

    def integers(self, *values: int) -> Value:
        """Make a constant of one axis."""
        name = "int_" + "_".join(str(value) for value in values)
        return self.constant(name, np.array(values, np.int64))

    def save(self, path: Path, name: str) -> None:
        """Write the graph; it refers to the weight file by its name, so both share a folder."""
        initializers = [self._weights.proto(tensor) for tensor in sorted(self._external)]
        graph = helper.make_graph(
            self._nodes,
            name,
            self._inputs,
            self._outputs,
            [*self._constants.values(), *initializers],
        )
        model = helper.make_model(
            graph,
            opset_imports=[helper.make_opsetid(*opset) for opset in self.opsets.items()],
            ir_version=self.ir_version,
            producer_name="autovla-rt",
        )
        path.write_bytes(model.SerializeToString(deterministic=True))


def vector(source: WeightSource, names: Sequence[str]) -> NDArray[np.float32]:
    """Read several tensors of one axis, joined."""
    return np.concatenate([source.rows(name, 0, source.shape(name)[0]) for name in names])
