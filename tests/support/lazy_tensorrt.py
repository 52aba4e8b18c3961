"""A model of TensorRT's runtime over `LazyDriver`: an engine's passes are ONNX Runtime's, later.

A plan is where its graph lies, with its profiles. What TensorRT computes is not the subject: how
passes are put to it is, and what becomes of the memory in between.
"""

from __future__ import annotations

import json
from enum import Enum
from types import ModuleType, SimpleNamespace

import numpy as np
import onnx
from standard_graphs import DTYPES, open_unrewritten

from autovla_rt import compile_engine
from autovla_rt.export.emit.tensorrt import EnginePlan

TYPES = {**DTYPES, "tensor(int64)": np.int64}
VERSION = "10.16.1"


class Mode(Enum):
    INPUT = 0
    OUTPUT = 1


class Context:
    def __init__(self, engine):
        self.engine, self.shapes, self.addresses = engine, {}, {}

    def set_device_memory(self, address, size):
        assert size == self.engine.device_memory_size_v2
        self.engine.driver.view(address, np.uint8, size)

    def set_optimization_profile_async(self, index, _stream):
        self.profile = index
        return True

    def set_input_shape(self, name, shape):
        least, _, most = self.engine.get_tensor_profile_shape(name, self.profile)
        sizes = zip(least, shape, most, strict=True)
        self.shapes[name] = shape
        return all(low <= size <= high for low, size, high in sizes)

    def set_tensor_address(self, name, address):
        self.addresses[name] = address
        return True

    def infer_shapes(self):
        return [name for name in self.engine.inputs if name not in self.shapes]

    def execute_async_v3(self, stream):
        engine = self.engine
        view = engine.driver.view

        def run():
            given = {
                name: view(self.addresses[name], engine.types[name], shape)
                for name, shape in self.shapes.items()
            }
            names = list(engine.outputs)
            found = engine.session.run(names, given)
            for name, array in zip(names, found, strict=True):
                view(self.addresses[name], engine.types[name], array.shape)[...] = array

        engine.driver.put(stream, engine.name, run)
        return True


class Engine:
    device_memory_size_v2 = 4096

    def __init__(self, driver, plan):
        self.driver, self.name = driver, plan["onnx"].rpartition("/")[2]
        self.session, self.profiles = open_unrewritten(plan["onnx"]), plan["profiles"]
        self.inputs = {of.name: of for of in self.session.get_inputs()}
        self.outputs = {of.name: of for of in self.session.get_outputs()}
        of = self.inputs | self.outputs
        self.types = {name: np.dtype(TYPES[tensor.type]) for name, tensor in of.items()}
        self.num_io_tensors, self.num_optimization_profiles = len(of), len(self.profiles)
        self.contexts = 0

    def get_tensor_name(self, index):
        return list(self.types)[index]

    def get_tensor_dtype(self, name):
        return self.types[name]

    def get_tensor_mode(self, name):
        return Mode.INPUT if name in self.inputs else Mode.OUTPUT

    def get_tensor_profile_shape(self, name, index):
        sizes = self.profiles[index]
        return [
            tuple(sizes[of][which] if isinstance(of, str) else of for of in self.inputs[name].shape)
            for which in range(3)
        ]

    def create_execution_context(self, _strategy):
        self.contexts += 1
        return Context(self)


def lazy_tensorrt(driver):
    """Return a module that stands for tensorrt; `engines` are those that were loaded."""
    module = ModuleType("tensorrt")
    module.__version__ = VERSION
    module.engines = []

    def deserialize(plan):
        module.engines.append(Engine(driver, json.loads(plan)))
        return module.engines[-1]

    def logger(_severity):
        return None

    logger.WARNING = 1
    module.Logger = logger
    module.Runtime = lambda _logger: SimpleNamespace(deserialize_cuda_engine=deserialize)
    module.ExecutionContextAllocationStrategy = SimpleNamespace(USER_MANAGED=2)
    module.TensorIOMode, module.nptype = Mode, np.dtype
    return module


def compile_lazily(bundle, trt, monkeypatch):
    """Write a bundle's plans for `trt`, as `autovla-rt compile` does."""

    def build(_trt, path, _sm, profiles, **_options):
        onnx.checker.check_model(path)
        sizes = [
            {name: (of.least, of.usual, of.most) for name, of in profile.items()}
            for profile in profiles
        ]
        plan = json.dumps({"onnx": str(path), "profiles": sizes})
        return EnginePlan(plan.encode(), 1, "Layers:", b"")

    monkeypatch.setattr(compile_engine, "build_engine_plan", build)
    compile_engine.compile_engine(
        bundle,
        trt,
        sm=bundle.manifest.sm,
        device="none",
        memory=1 << 30,
        cuda="13.2",
        free=None,
        told=lambda _line: None,
    )
