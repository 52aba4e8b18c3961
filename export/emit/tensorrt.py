"""Compiling the `standard` dialect's ONNX with TensorRT, or with TensorRT for RTX.

Their Python APIs agree as far as this needs, so the module is a parameter; TensorRT for RTX names
the device in the configuration, TensorRT compiles for the GPU at hand.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autovla_rt.errors import TargetError

if TYPE_CHECKING:
    import tensorrt_rtx

COMPILED = "Layers:"
"""Begins the message that lists what was compiled."""

Shape = tuple[int, ...]

Module = Any
"""tensorrt or tensorrt_rtx: neither has types."""


@dataclass(frozen=True)
class Sizes:
    """Sizes that one dynamic dimension takes.

    Attributes:
        least: Smallest.
        usual: That tactics are chosen for.
        most: Largest.
    """

    least: int
    usual: int
    most: int


SIZES = tuple(of.name for of in fields(Sizes))


@dataclass(frozen=True)
class EnginePlan:
    """A compiled graph.

    Attributes:
        plan: As the runtime library reads it.
        layers: Of the network that was compiled.
        compiled: The compiler's own list of what became of them, with types; as it logs it.
        timing_cache: What it measured of tactics, and what it was given.
    """

    plan: bytes
    layers: int
    compiled: str
    timing_cache: bytes


def build_engine_plan(
    trt: Module,
    onnx_path: Path,
    sm: int,
    profiles: Sequence[Mapping[str, Sizes]],
    *,
    workspace: int | None = None,
    timing_cache: bytes = b"",
) -> EnginePlan:
    """Compile a graph, strongly typed.

    Args:
        trt: The module tensorrt or tensorrt_rtx.
        onnx_path: The graph; its weights lie beside it.
        sm: CUDA compute capability without the dot; TensorRT itself compiles for the GPU at hand,
            whichever that is.
        profiles: Sizes of dynamic dimensions, by name; each makes a profile of the plan, unless it
            says the same of this graph as the one before.
        workspace: Bytes that a tactic may take while it computes; None leaves it to the compiler.
        timing_cache: Of an earlier build.

    Raises:
        TargetError: the compiler does not know the device or does not take the graph for it, or
            sizes of a dimension are missing.
    """
    logger = _logger(trt)
    builder: tensorrt_rtx.Builder = trt.Builder(logger)
    network = builder.create_network(_strongly_typed(trt))
    parser: tensorrt_rtx.OnnxParser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(str(onnx_path)):
        errors = [parser.get_error(index) for index in range(parser.num_errors)]
        said = [f"{of.node_operator()} {of.node_name()}: {of.desc()}" for of in errors]
        raise _refusal(trt, onnx_path, sm, "parse", said)
    configuration = builder.create_builder_config()
    configuration.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    _aim(trt, configuration, sm)
    if workspace is not None:
        configuration.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, workspace)
    cache = configuration.create_timing_cache(timing_cache)
    configuration.set_timing_cache(cache, ignore_mismatch=False)
    for dimensions in _different(profiles, network):
        configuration.add_optimization_profile(_profile(builder, network, onnx_path, dimensions))
    plan = builder.build_serialized_network(network, configuration)
    if plan is None:
        raise _refusal(trt, onnx_path, sm, "compile", logger.errors)
    measured = bytes(configuration.get_timing_cache().serialize())
    return EnginePlan(bytes(plan), network.num_layers, logger.compiled, measured)


def _logger(trt: Module) -> Any:
    class Logger(trt.ILogger):  # type: ignore[misc]
        """Keeps what the compiler says of failures and of its result, and prints nothing."""

        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []
            self.compiled = ""

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
                self.errors.append(message)
            elif message.startswith(COMPILED):
                self.compiled = message

    return Logger()


def _strongly_typed(trt: Module) -> int:
    """Return the flags of a network whose types are the graph's, which some versions always are."""
    flag = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    return 0 if flag is None else 1 << int(flag)


def _aim(trt: Module, configuration: tensorrt_rtx.IBuilderConfig, sm: int) -> None:
    """Choose the device, where it can be chosen."""
    if not hasattr(configuration, "set_compute_capability"):
        return
    configuration.num_compute_capabilities = 1
    capability = getattr(trt.ComputeCapability, f"SM{sm}", None)
    if capability is None or not configuration.set_compute_capability(capability, 0):
        known = [name for name in dir(trt.ComputeCapability) if name.startswith("SM")]
        raise TargetError(
            f"SM {sm / 10:.1f}: expected one of {', '.join(known)} for {trt.__name__} "
            f"{trt.__version__}. Compile on the device, with TensorRT."
        )


def _different(
    profiles: Sequence[Mapping[str, Sizes]], network: tensorrt_rtx.INetworkDefinition
) -> Iterator[Mapping[str, Sizes]]:
    """Yield the profiles that say something new of a network's dynamic dimensions."""
    inputs = [network.get_input(index) for index in range(network.num_inputs)]
    names = {
        tensor.get_dimension_name(axis)
        for tensor in inputs
        for axis, size in enumerate(tuple(tensor.shape))
        if size == -1
    }
    seen = []
    for profile in profiles:
        relevant = {name: sizes for name, sizes in profile.items() if name in names}
        if relevant not in seen:
            seen.append(relevant)
            yield profile


def _profile(
    builder: tensorrt_rtx.Builder,
    network: tensorrt_rtx.INetworkDefinition,
    onnx_path: Path,
    dimensions: Mapping[str, Sizes],
) -> tensorrt_rtx.IOptimizationProfile:
    """Give every dynamic input its smallest, usual and largest shape."""
    profile = builder.create_optimization_profile()
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        if -1 not in tuple(tensor.shape):
            continue
        names = [tensor.get_dimension_name(axis) for axis in range(len(tensor.shape))]
        shapes = [_shape(tensor, names, which, onnx_path, dimensions) for which in SIZES]
        profile.set_shape(tensor.name, *shapes)
    return profile


def _shape(
    tensor: tensorrt_rtx.ITensor,
    names: list[str],
    which: str,
    path: Path,
    dimensions: Mapping[str, Sizes],
) -> Shape:
    sizes = []
    for size, name in zip(tuple(tensor.shape), names, strict=True):
        if size == -1 and name not in dimensions:
            raise TargetError(
                f"{path}: expected the sizes of dimension {name!r} of input {tensor.name}, got "
                f"those of {', '.join(dimensions) or 'none'}."
            )
        sizes.append(getattr(dimensions[name], which) if size == -1 else size)
    return tuple(sizes)


def _refusal(trt: Module, path: Path, sm: int, step: str, errors: list[str]) -> TargetError:
    said = "\n".join(errors) or "nothing"
    return TargetError(
        f"{path}: {trt.__name__} {trt.__version__} does not {step} the graph for SM {sm / 10:.1f}. "
        f"It said:\n{said}\nExport with another --precision, or use a newer version."
    )
