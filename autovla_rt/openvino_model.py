"""OpenVINO models on the CPU, opened the same way by builds and by the runtime.

A language model is stored without its KV cache (`export.graph.openvino`): `put_kv_cache` puts in
PagedAttention, the operator of OpenVINO's own servers, which reads and writes keys and values in
place, in blocks that the caller holds. So a rollback is a smaller number, and nothing is copied
between passes.
"""

from __future__ import annotations

import logging
import mmap
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autovla_rt.config import LanguageGeometry, Precision
from autovla_rt.errors import BundleError, DependencyError
from autovla_rt.machine import AMX, this_machine, usable_cores
from autovla_rt.openvino_library import ov

RELEASE = "2026.4"
"""The release whose PagedAttention this is; its inputs change from one to the next."""

QUERY, KEY, VALUE, ATTENDED = "query", "key", "value", "attended"
"""Names, before a dot and the layer's number, of the rows that a layer's attention reads and makes:
[k, heads * head_dim], rotated."""
SUM = ".sum"
"""Behind the name of a norm's weight: the sum that it normalises."""

BLOCK = 32
"""Positions of a block of the KV cache, as the CPU plugin has them."""

INT8_GROUP = 256
"""Values of a row that share a scale when the plugin quantizes activations for int8 weights.

For int4 weights it can be no more than the weights' own block.
"""

LET_GO_SECONDS = 0.1
"""Between two times that pages are let go of in a first pass: some 30 MB of them."""

ACTIVATIONS = {"fp32": "f32", "bf16": "bf16"}
"""Name of a bundle -> OpenVINO's."""

POSITIONS = "past_lens"
ROWS_BEGIN = "subsequence_begins"
BLOCKS = "block_indices"
BLOCKS_BEGIN = "block_indices_begins"
LONGEST = "max_context_len"

CACHES = ("key_cache", "value_cache")

PRECISION_HINT = "INFERENCE_PRECISION_HINT"

Float = NDArray[np.float32]

log = logging.getLogger("autovla_rt")


def require_release() -> None:
    """Refuse another release of OpenVINO than this version of autovla-rt was made for.

    Raises:
        DependencyError: another one is installed.
    """
    if not ov.__version__.startswith(f"{RELEASE}."):
        raise DependencyError(
            f"expected OpenVINO {RELEASE}, got {ov.__version__}: its attention operator changes "
            f"from release to release.\nInstall it: pip install 'openvino=={RELEASE}.*'"
        )


def runs_here() -> str:
    """Compute something on the CPU; returns the version.

    Raises:
        DependencyError: another release is installed.
        RuntimeError: OpenVINO cannot.
    """
    require_release()
    x = ov.opset15.parameter([1], np.float32)
    model = ov.Model([ov.opset15.result(ov.opset15.negative(x))], [x], "negative")
    (result,) = ov.Core().compile_model(model, "CPU")([np.ones(1, np.float32)]).values()
    if result[0] != -1:
        raise RuntimeError(f"-1 came out as {result[0]}")
    return str(ov.get_version()).partition("-")[0]


def has_bfloat16() -> bool:
    """Whether this CPU computes in bfloat16."""
    return "BF16" in ov.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


class OpenVinoModel:
    """A stored model; its weights stay in their file, mapped, until it is compiled and has run.

    Attributes:
        model: openvino.Model, to be changed before it is compiled.

    Raises:
        DependencyError: another release of OpenVINO is installed.
        BundleError: the files are no model.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._compiled: Any = None
        self._request: Any = None
        self._kept: list[NDArray[Any]] = []
        self._apart = ThreadPoolExecutor(1) if AMX in this_machine().features else None
        """A thread of its own: OpenVINO leaves AMX's tiles in another state than ONNX Runtime has,
        whose int8 products in the same thread then end the process by an illegal instruction."""
        self._ordered = False
        """Whether OpenVINO has copied the weights into its own order, which the first run does."""
        require_release()
        try:
            with path.with_suffix(".bin").open("rb") as file:
                # Copy on write, since OpenVINO takes no read-only memory; it writes nothing.
                self._mapping = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
            weights = ov.Tensor(np.frombuffer(self._mapping, np.uint8), shared_memory=True)
            self.model: Any = ov.Core().read_model(path.read_bytes(), weights)
        except (OSError, ValueError, RuntimeError) as error:
            raise BundleError(
                f"{path}: OpenVINO {ov.__version__} cannot read the model: {error}\n"
                "Build the bundle again."
            ) from error

    def compile(self, threads: int | None, precision: Precision, formats: set[str]) -> None:
        """Compile the model for the CPU.

        Args:
            threads: None takes every core.
            precision: Of the engine.
            formats: Of this model: `precision.vision_formats` or `precision.language_formats`.

        Raises:
            BundleError: OpenVINO cannot.
        """
        settings = self.settings(threads, precision, formats)
        try:
            self._compiled = ov.Core().compile_model(self.model, "CPU", settings)
            self._request = self._compiled.create_infer_request()
        except RuntimeError as error:
            raise BundleError(
                f"{self._path}: OpenVINO {ov.__version__} cannot compile the model: {error}\n"
                "Build the bundle again, or build one for --target cpu."
            ) from error
        wanted = ACTIVATIONS[precision.activations]
        if (got := self._compiled.get_property(PRECISION_HINT)) != getattr(ov.Type, wanted):
            log.warning(
                "%s: built to compute in %s between products, this CPU computes in %s: slower, and "
                "not to the last bit what another computes",
                self._path.name,
                wanted,
                got.get_type_name(),
            )

    def settings(
        self, threads: int | None, precision: Precision, formats: set[str]
    ) -> dict[str, Any]:
        """Return what the CPU plugin is told; arguments as for `compile`.

        A CPU that lacks bfloat16 computes in float32 and takes keys and values in nothing else.
        """
        activations = ACTIVATIONS[precision.activations]
        if activations == "bf16" and not has_bfloat16():
            activations = "f32"
        return {
            "INFERENCE_NUM_THREADS": threads or usable_cores(),
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": 1,
            PRECISION_HINT: activations,
            "KV_CACHE_PRECISION": activations,
            "DYNAMIC_QUANTIZATION_GROUP_SIZE": (
                precision.int4_block if "int4" in formats else INT8_GROUP
            ),
        }

    def keep_cache(self, name: str, states: NDArray[np.generic], blocks: int) -> NDArray[Any]:
        """Give a cache of so many blocks that holds the states of the first positions.

        Args:
            name: Of the input.
            states: Keys or values [kv_heads, n, head_dim].
            blocks: Blocks of the cache.

        Returns:
            Where OpenVINO holds it (see `read_positions`).
        """
        element = self._compiled.input(name).get_element_type()
        heads, _, width = states.shape
        cache = np.zeros((blocks, heads, BLOCK, width), np.float32)
        _write_positions(cache, states)
        held = _bfloat16_bits(cache) if element == ov.Type.bf16 else cache
        self._kept.append(held)
        self._request.set_tensor(name, ov.Tensor(held, ov.Shape(list(held.shape)), element))
        return held

    def run(self, given: Mapping[str, NDArray[Any]], *outputs: str) -> list[Float]:
        """Run on some inputs; returns copies of some outputs."""
        for name, array in given.items():
            self._request.set_tensor(name, ov.Tensor(array, shared_memory=True))
        if self._ordered:
            self._infer()
        else:
            with self._pages_let_go():
                self._infer()
            self._ordered = True
        return [self._request.get_tensor(name).data.copy() for name in outputs]

    def _infer(self) -> None:
        if self._apart is None:
            self._request.infer()
        else:
            self._apart.submit(self._request.infer).result()

    @contextmanager
    def _pages_let_go(self) -> Iterator[None]:
        """Let go of the file's pages again and again; they are read anew where needed.

        The weights would be in memory twice while OpenVINO copies them, layer by layer.
        """
        done = Event()

        def let_go() -> None:
            while not done.wait(LET_GO_SECONDS):
                self._mapping.madvise(mmap.MADV_DONTNEED)

        thread = Thread(target=let_go, daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()
            self._mapping.madvise(mmap.MADV_DONTNEED)


def put_kv_cache(stored: OpenVinoModel, geometry: LanguageGeometry, layers: Iterable[int]) -> None:
    """Replace the attention of a language model's layers by one over a KV cache.

    The model gets inputs more: those that say where the pass stands, and `key_cache.N` and
    `value_cache.N` of every layer, whose type and shape the compiled model tells.
    """
    inputs = {
        name: _parameter(name, shape)
        for name, shape in (
            (POSITIONS, [1]),
            (ROWS_BEGIN, [2]),
            (BLOCKS, [-1]),
            (BLOCKS_BEGIN, [2]),
            (LONGEST, []),
        )
    }
    parameters = list(inputs.values())
    model = stored.model
    nodes = {node.get_friendly_name(): node for node in model.get_ops()}
    for layer in layers:
        caches = [_parameter(f"{name}.{layer}", [-1] * 4, ov.Type.dynamic) for name in CACHES]
        parameters += caches
        read = [nodes[f"{name}.{layer}"] for name in (QUERY, KEY, VALUE)]
        attention = _paged_attention(read, caches, inputs, geometry)
        nodes[f"{ATTENDED}.{layer}"].output(0).replace(attention.output(0))
    given = [*model.get_parameters(), *parameters]
    stored.model = ov.Model(model.get_results(), given, model.get_name())


def pass_inputs(start: int, count: int, blocks: NDArray[np.int32]) -> dict[str, NDArray[np.int32]]:
    """Return the inputs that say where a pass of `count` positions from `start` on stands.

    `blocks` are those of the cache, in their order.
    """
    total = start + count
    used = blocks[: -(-total // BLOCK)]
    values = {
        POSITIONS: [start],
        ROWS_BEGIN: [0, count],
        BLOCKS_BEGIN: [0, used.size],
        LONGEST: total,
    }
    return {BLOCKS: used, **{name: np.array(value, np.int32) for name, value in values.items()}}


def _write_positions(cache: Float, states: NDArray[np.generic]) -> None:
    """Write keys or values [kv_heads, n, head_dim] of the first positions into a cache."""
    heads, count, width = states.shape
    padded = np.zeros((heads, -(-count // BLOCK) * BLOCK, width), np.float32)
    padded[:, :count] = states
    blocks = padded.reshape(heads, -1, BLOCK, width).transpose(1, 0, 2, 3)
    cache[: len(blocks)] = blocks


def _bfloat16_bits(values: Float) -> NDArray[np.uint16]:
    """Round to nearest even; values that a bfloat16 engine has computed are kept as they are."""
    bits = values.view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def read_positions(cache: NDArray[Any], count: int) -> Float:
    """Return the keys or values [kv_heads, count, head_dim] of a cache's first positions."""
    _, heads, _, width = cache.shape
    whole = np.ascontiguousarray(cache.transpose(1, 0, 2, 3).reshape(heads, -1, width)[:, :count])
    if whole.dtype == np.uint16:  # the upper halves of float32
        return (whole.astype(np.uint32) << 16).view(np.float32)
    return whole


def _parameter(name: str, shape: list[int], element: ov.Type = ov.Type.i32) -> ov.Node:
    parameter = ov.opset15.parameter(ov.PartialShape(shape), element, name)
    parameter.output(0).set_names({name})
    return parameter


def _paged_attention(
    read: list[ov.Node],
    caches: list[ov.Node],
    inputs: Mapping[str, ov.Node],
    geometry: LanguageGeometry,
) -> ov.Node:
    """Make the operator, in the order of its 28 inputs; what is empty or 0 is not used."""

    def empty(dtype: type[np.generic], rank: int = 1) -> ov.Node:
        return ov.opset15.constant(np.zeros((0,) * rank, dtype))

    zero = ov.opset15.constant(np.int32(0))
    scale = ov.opset15.constant(np.float32(geometry.head_dim**-0.5))
    integers, floats = empty(np.int32), empty(np.float32)
    arguments = [
        *read,
        *caches,
        inputs[POSITIONS],
        inputs[ROWS_BEGIN],
        inputs[BLOCKS],
        inputs[BLOCKS_BEGIN],
        scale,
        zero,  # no sliding window
        floats,  # no ALiBi
        inputs[LONGEST],
        integers,  # no aggregated scores
        *(integers, integers, floats),  # no rotation of the cache
        *(floats, zero, zero),  # no sparse attention
        empty(np.float32, 4),  # no sinks
        *(zero, integers, integers, integers),  # no eviction
        integers,  # no token types
        *(empty(np.uint8), integers),  # no tree mask
    ]
    attention = ov.op._PagedAttentionExtension([node.output(0) for node in arguments])
    facts = attention.get_rt_info()
    for part in ("k", "v"):
        facts[f"num_{part}_heads"] = geometry.num_key_value_heads
        facts[f"{part}_head_size"] = geometry.head_dim
    return attention
