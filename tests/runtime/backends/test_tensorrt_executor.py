"""How passes are put to TensorRT: contexts, profiles, CUDA graphs. Recorded, not executed.

The engine and the stream are stand-ins that note what they are told: deserialising a real engine
needs a GPU. That calls exist in NVIDIA's module is tested in tests/parity/test_tensorrt_api.py, the
real stream and graphs in tests/gpu/test_cuda_device.py.
"""

from enum import Enum
from types import SimpleNamespace

import numpy as np
import pytest

from autovla_rt.errors import BundleError, DeviceError
from autovla_rt.runtime.backends.cuda_device import CudaMemory
from autovla_rt.runtime.backends.tensorrt_executor import KEPT_SHAPES, TensorRtExecutor


class Mode(Enum):
    INPUT = 1
    OUTPUT = 2


TRT = SimpleNamespace(
    ExecutionContextAllocationStrategy=SimpleNamespace(USER_MANAGED="ours"),
    TensorIOMode=Mode,
    nptype=np.dtype,
)
PROFILES = [((1, 8), (12, 8), (64, 8)), ((65, 8), (800, 8), (2048, 8))]


class Context:
    def __init__(self, log):
        self.log, self.shapes, self.addresses, self.accepts = log, {}, {}, True

    def set_device_memory(self, address, size):
        self.scratch = address, size

    def set_optimization_profile_async(self, index, stream):
        self.profile = index
        return True

    def set_input_shape(self, name, shape):
        self.shapes[name] = shape
        return True

    def set_tensor_address(self, name, address):
        self.addresses[name] = address
        return True

    def infer_shapes(self):
        return []

    def execute_async_v3(self, stream):
        self.log.append(("execute", self.shapes["x"], stream))
        return self.accepts


class Engine:
    num_io_tensors, num_optimization_profiles, device_memory_size_v2 = 2, 2, 77

    def __init__(self, log):
        self.log, self.contexts, self.is_full = log, [], False

    def get_tensor_name(self, index):
        return "xy"[index]

    def get_tensor_dtype(self, name):
        return "float32"

    def get_tensor_mode(self, name):
        return Mode.INPUT if name == "x" else Mode.OUTPUT

    def get_tensor_profile_shape(self, name, index):
        return PROFILES[index]

    def create_execution_context(self, strategy):
        assert strategy == "ours"
        if self.is_full:
            return None
        self.contexts.append(Context(self.log))
        return self.contexts[-1]


class Stream:
    stream = 5

    def __init__(self, log):
        self.log, self.used = log, []

    def scratch(self, size):
        return 4096

    def capture(self, work):
        self.log.append("begin")
        work()
        self.log.append("end")
        return f"graph {sum(entry == 'begin' for entry in self.log)}"

    def uses(self, *memory):
        self.used = [of.address for of in memory]

    def replay(self, graph):
        self.log.append(("replay", graph))

    def forget(self, graph):
        self.log.append(("forget", graph))


@pytest.fixture
def made():
    log = []
    engine, stream = Engine(log), Stream(log)
    return TensorRtExecutor(TRT, engine, stream, "language.plan"), engine, stream, log


def memory(address, dtype="float32"):
    return CudaMemory(address, np.dtype(dtype))


def bind(executor, rows):
    executor.bind("x", memory(100), (rows, 8))
    executor.bind("y", memory(200), (rows, 3))


def test_a_shape_runs_then_is_captured_then_replayed(made):
    executor, engine, stream, log = made
    bind(executor, 12)
    for _ in range(4):
        executor.run()
    run = ("execute", (12, 8), 5)
    assert log == [run, "begin", run, "end", ("replay", "graph 1"), *2 * [("replay", "graph 1")]]
    (context,) = engine.contexts
    assert (context.scratch, context.addresses) == ((4096, 77), {"x": 100, "y": 200})
    assert stream.used == [100, 200]


def test_every_shape_has_a_context_of_its_own_in_the_profile_that_holds_it(made):
    executor, engine, _, _ = made
    for rows in (12, 832, 12, 2):
        bind(executor, rows)
        executor.run()
    assert [(of.shapes["x"], of.profile) for of in engine.contexts] == [
        ((12, 8), 0),
        ((832, 8), 1),
        ((2, 8), 0),
    ]


def test_other_memory_is_another_context(made):
    executor, engine, _, _ = made
    bind(executor, 12)
    executor.run()
    executor.bind("x", memory(300), (12, 8))
    executor.run()
    assert [context.addresses["x"] for context in engine.contexts] == [100, 300]


def test_shapes_of_a_long_drive_do_not_add_up(made):
    executor, engine, _, log = made
    bind(executor, 12)
    for _ in range(3):
        executor.run()
    for rows in range(700, 700 + 3 * KEPT_SHAPES):
        bind(executor, rows)
        executor.run()
    assert len(engine.contexts) == 1 + 3 * KEPT_SHAPES
    assert ("forget", "graph 1") in log  # it was used least recently
    bind(executor, 12)
    executor.run()
    assert len(engine.contexts) == 2 + 3 * KEPT_SHAPES


def test_a_shape_in_use_outlives_rare_ones(made):
    executor, engine, _, log = made
    for rows in range(700, 700 + 2 * KEPT_SHAPES):
        for size in (12, rows):
            bind(executor, size)
            executor.run()
    assert len(engine.contexts) == 1 + 2 * KEPT_SHAPES
    assert not any(entry[0] == "forget" for entry in log)


def test_a_shape_outside_every_profile_is_told_with_them(made):
    executor, *_ = made
    bind(executor, 4000)
    with pytest.raises(BundleError, match=r"\(65, 8\) to \(2048, 8\).*4000.*\n.*compile"):
        executor.run()


@pytest.mark.parametrize(("name", "dtype"), [("x", "float16"), ("z", "float32")])
def test_memory_of_another_type_or_name_is_refused(made, name, dtype):
    executor, *_ = made
    with pytest.raises(BundleError, match=rf"got {name} in {dtype}"):
        executor.bind(name, memory(1, dtype), (2, 8))


def test_a_full_gpu_and_a_refused_pass_are_told(made):
    executor, engine, _, _ = made
    bind(executor, 2)
    executor.run()
    engine.contexts[0].accepts = False
    with pytest.raises(DeviceError, match="refused the pass"):
        executor.run()
    engine.is_full = True
    bind(executor, 3)
    with pytest.raises(DeviceError, match="memory is full"):
        executor.run()
