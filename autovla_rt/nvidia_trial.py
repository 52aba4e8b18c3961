"""`python -m autovla_rt.nvidia_trial MODULE`: whether one of NVIDIA's libraries works here.

In a process of its own, because a native library that does not fit the machine may end it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib import import_module


def compile_and_load(name: str) -> None:
    """Compile y = x with TensorRT or TensorRT for RTX, and load the engine.

    Raises:
        RuntimeError: a step gave nothing; the library has said why on stderr.
    """
    trt = import_module(name)
    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    network = builder.create_network(0)
    layer = network.add_identity(network.add_input("x", trt.float32, (1,)))
    network.mark_output(layer.get_output(0))
    plan = builder.build_serialized_network(network, builder.create_builder_config())
    engine = None if plan is None else trt.Runtime(logger).deserialize_cuda_engine(plan)
    if engine is None or engine.create_execution_context() is None:
        raise RuntimeError(f"{name} {'does not compile' if plan is None else 'loads no engine'}")


def load_edgellm(name: str) -> None:
    """Load Edge-LLM's native runtime for this machine."""
    import_module(f"{name}.runtime").load()


def import_library(name: str) -> None:
    """Import a library with all its native parts."""
    import_module(name)


TRIALS: dict[str, tuple[Callable[[str], None], str]] = {
    "tensorrt": (compile_and_load, "compiled and loaded an engine"),
    "tensorrt_rtx": (compile_and_load, "compiled and loaded an engine"),
    "tensorrt_edgellm": (load_edgellm, "its runtime was loaded"),
    "tensorrt_llm": (import_library, "it was imported"),
}
"""Module -> what is tried of it, and what that is called."""

if __name__ == "__main__":
    TRIALS[sys.argv[1]][0](sys.argv[1])
