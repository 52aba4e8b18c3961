"""A compiled graph in TensorRT: one execution context for each shape that comes again.

TensorRT and TensorRT for RTX have one Python API as far as this needs, so the module is a
parameter. Contexts share one scratch memory, since one runs at a time on one stream. A shape's
first pass runs as it is, its second is captured as a CUDA graph, later ones replay that (NVIDIA's
rule: a context of its own for every captured graph).
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from autovla_rt.errors import BundleError, DeviceError
from autovla_rt.runtime.backends.cuda_device import CudaDevice, CudaMemory
from autovla_rt.runtime.backends.executor import Shape

if TYPE_CHECKING:
    import tensorrt_rtx

Module = Any
"""tensorrt or tensorrt_rtx."""

KEPT_SHAPES = 32
"""Contexts of one graph that are kept; of more, the one that was used least recently goes."""

Bound = dict[str, tuple[CudaMemory, Shape]]


@dataclass
class ShapedContext:
    """A context whose shapes and addresses are set.

    Attributes:
        context: TensorRT's.
        has_run: Whether it ran as it is: capturing needs that.
        graph: Its work as a CUDA graph; None before it was captured.
    """

    context: tensorrt_rtx.IExecutionContext
    has_run: bool = False
    graph: Any = None


class TensorRtExecutor:
    """Runs an engine on the device's stream.

    Args:
        trt: The module.
        engine: Deserialised.
        device: The GPU.
        name: Of the plan, for messages.

    Raises:
        DeviceError: there is too little memory for its scratch.
    """

    def __init__(
        self, trt: Module, engine: tensorrt_rtx.ICudaEngine, device: CudaDevice, name: str
    ) -> None:
        self._engine, self._device, self._name = engine, device, name
        self._manual = trt.ExecutionContextAllocationStrategy.USER_MANAGED
        count = engine.num_io_tensors
        names = [engine.get_tensor_name(index) for index in range(count)]
        self._types = {of: trt.nptype(engine.get_tensor_dtype(of)) for of in names}
        modes = {of: engine.get_tensor_mode(of) for of in names}
        self._inputs = [of for of in names if modes[of] == trt.TensorIOMode.INPUT]
        self._profiles = [
            {of: engine.get_tensor_profile_shape(of, index) for of in self._inputs}
            for index in range(engine.num_optimization_profiles)
        ]
        self._scratch_size = engine.device_memory_size_v2
        self._scratch = device.scratch(self._scratch_size)
        self._bound: Bound = {}
        self._contexts: OrderedDict[tuple[Any, ...], ShapedContext] = OrderedDict()

    def bind(self, name: str, memory: CudaMemory, shape: Shape) -> None:
        """Use the beginning of some memory for an input or output.

        Raises:
            BundleError: the plan has no such tensor, or one of another type.
        """
        expected = self._types.get(name)
        if expected is None or memory.dtype != expected:
            raise BundleError(
                f"{self._name}: expected the tensors {', '.join(self._types)}, {name} in "
                f"{expected}, got {name} in {memory.dtype}.\nCompile the engine again: "
                "autovla-rt compile."
            )
        self._bound[name] = memory, tuple(shape)

    def run(self) -> None:
        """Put one pass on the stream.

        Raises:
            BundleError: the plan has no profile for the shapes.
            DeviceError: TensorRT refused.
        """
        # A name that is bound anew keeps its place, so names need not be part of it.
        key = tuple((of.address, shape) for of, shape in self._bound.values())
        if key not in self._contexts:
            self._contexts[key] = ShapedContext(self._context())
            if len(self._contexts) > KEPT_SHAPES:
                _, oldest = self._contexts.popitem(last=False)
                if oldest.graph is not None:
                    self._device.forget(oldest.graph)
        self._contexts.move_to_end(key)
        shaped = self._contexts[key]
        if shaped.graph is None and shaped.has_run:
            shaped.graph = self._device.capture(lambda: self._execute(shaped))
        if shaped.graph is None:
            self._execute(shaped)
            shaped.has_run = True
        else:
            self._device.replay(shaped.graph)
        self._device.uses(*(memory for memory, _ in self._bound.values()))

    def _context(self) -> tensorrt_rtx.IExecutionContext:
        """Return a new context for what is bound now."""
        profile = self._profile()
        context = self._engine.create_execution_context(self._manual)
        if context is None:
            raise DeviceError(
                f"{self._name}: TensorRT cannot make an execution context; the GPU's memory is "
                "full. End other programs, or build with a smaller --kv-capacity."
            )
        context.set_device_memory(self._scratch, self._scratch_size)
        self._require(
            context.set_optimization_profile_async(profile, self._device.stream), "a profile"
        )
        for name, (memory, shape) in self._bound.items():
            if name in self._inputs:
                self._require(context.set_input_shape(name, shape), f"{name} of shape {shape}")
            self._require(context.set_tensor_address(name, memory.address), f"memory of {name}")
        if unknown := context.infer_shapes():
            raise BundleError(f"{self._name}: expected shapes for {', '.join(unknown)} as well.")
        return context

    def _profile(self) -> int:
        """Return the first profile that has the shapes that are bound."""
        given = {name: shape for name, (_, shape) in self._bound.items() if name in self._inputs}
        for index, profile in enumerate(self._profiles):
            if all(_within(given[name], profile[name]) for name in given):
                return index
        told = "; ".join(
            ", ".join(f"{name} {least} to {most}" for name, (least, _, most) in profile.items())
            for profile in self._profiles
        )
        raise BundleError(
            f"{self._name}: expected shapes within a profile ({told}), got {given}.\n"
            "Compile the engine again: autovla-rt compile."
        )

    def _execute(self, shaped: ShapedContext) -> None:
        self._require(shaped.context.execute_async_v3(self._device.stream), "the pass")

    def _require(self, accepted: bool, what: str) -> None:
        if not accepted:
            raise DeviceError(f"{self._name}: TensorRT refused {what}; its log says why.")


def _within(shape: Shape, bounds: Any) -> bool:
    least, _, most = bounds
    sizes = zip(tuple(least), shape, tuple(most), strict=True)
    return all(low <= size <= high for low, size, high in sizes)
