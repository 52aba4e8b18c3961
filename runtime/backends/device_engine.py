"""The engine of a device: bindings, the KV cache in its memory, passes of few sizes.

It runs the graphs of the `standard` and `plain` dialects over an executor: a TensorRT context on a
GPU, an ONNX Runtime session on a CPU. All memory is allocated at load and bound by address, so a
pass of a size that was seen before asks the device for nothing new, and a GPU can replay it as a
CUDA graph.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autovla_rt.bundle import Bundle, Manifest
from autovla_rt.config import KV_COPIES, Camera
from autovla_rt.prefix import prefix_length
from autovla_rt.runtime.backends import Float, Grid, Pending
from autovla_rt.runtime.backends.cached_language import CachedLanguage
from autovla_rt.runtime.backends.executor import Buffer, Device, FramePatches, Levels, fits

PASS_SIZES = (2, 4, 8, 12, 16, 24, 32, 48, 64)
"""Rows of passes: shorter ones are padded to the next by repeating the last row.

So a device meets few shapes: a scaffold with ten actions, one token, a draft. What the spare rows
write lies behind the sequence and is overwritten. Longer passes (a prefill) have their own length.
"""

FLOAT_TYPES = {"fp32": "float32", "fp16": "float16"}
"""What a graph computes in between products -> type of its patches, keys and values."""


@dataclass(frozen=True)
class _Lane:
    """Memory for one camera's pairs of frames, on their way to features."""

    grid: Grid
    most: int
    make_patches: FramePatches
    patches: Buffer
    features: Buffer


class DeviceVision:
    """The vision tower: one graph per grid, batched over a camera's temporal patches.

    Each camera has memory of its own, so that all can be put on the device's queue one after the
    other, and one's features be taken while the next one's are computed.
    """

    def __init__(self, bundle: Bundle, device: Device) -> None:
        vision = bundle.manifest.geometry.vision
        self._width, self._hidden = vision.patch_width, vision.out_hidden_size
        self._merged, self._clip = vision.spatial_merge_size**2, vision.temporal_patch_size
        self._lanes = {
            camera.name: self._lane(bundle.manifest, camera, device)
            for camera in bundle.manifest.cameras
        }
        self._graphs = {
            (rows, columns): device.open(bundle.path(f"vision_{rows}x{columns}.onnx"))
            for rows, columns in {lane.grid for lane in self._lanes.values()}
        }

    def _lane(self, manifest: Manifest, camera: Camera, device: Device) -> _Lane:
        most, rows, columns = camera.grid
        patches, dtype = rows * columns, FLOAT_TYPES[manifest.precision.activations]
        return _Lane(
            (rows, columns),
            most,
            device.frame_patches(camera, manifest),
            device.allocate((most, patches, self._width), dtype),
            device.allocate((most, patches // self._merged, self._hidden), "float32"),
        )

    def start(self, frames: Sequence[Levels], camera: Camera) -> Pending:
        """Start encoding a camera's frames; returns what waits for their features."""
        lane = self._lanes[camera.name]
        lane.make_patches(frames, lane.patches)
        return self._run(lane, len(frames) // self._clip)

    def encode(self, patches: Float, grid: Grid) -> Float:
        """Encode [B, rows*columns, patch_width] patches of one (rows, columns) grid."""
        lane = next(of for of in self._lanes.values() if of.grid == grid)
        found = []
        for start in range(0, len(patches), lane.most):
            part = patches[start : start + lane.most]
            lane.patches.write(part)
            found.append(self._run(lane, len(part))())
        return np.concatenate(found)

    def _run(self, lane: _Lane, count: int) -> Pending:
        rows, columns = lane.grid
        graph = self._graphs[lane.grid]
        shape = count, rows * columns // self._merged, self._hidden
        graph.bind("patches", lane.patches, (count, rows * columns, self._width))
        graph.bind("features", lane.features, shape)
        graph.run()
        return lane.features.fetch(shape)


class DeviceLanguage(CachedLanguage):
    """The language model with its KV cache in the device's memory.

    The prompt's constant prefix is computed at load, on the device, so that it is bit for bit what
    a request would compute.

    Args:
        bundle: The engine.
        device: Where it runs.
        use_prefix: Compute the prefix once, at load.
    """

    def __init__(self, bundle: Bundle, device: Device, *, use_prefix: bool = True) -> None:
        super().__init__(bundle, None)
        geometry = bundle.manifest.geometry.language
        self._hidden_size = geometry.hidden_size
        heads, width = geometry.num_key_value_heads, geometry.head_dim
        self._cache_shape = 1, heads, self._capacity, width
        self._in_place = KV_COPIES[bundle.manifest.dialect] == 1
        self._text_rows = bundle.manifest.actions.action_start_id
        self._model = device.open(bundle.path("language.onnx"))
        self._head = device.open(bundle.path("text_head.onnx"))
        self._inputs = {
            "embeddings": device.allocate((self._capacity, self._hidden_size), "float32"),
            "rows": device.allocate((self._capacity,), "int64"),
            "positions": device.allocate((1, self._capacity), "int64"),
            "write_indices": device.allocate((1,), "int64"),
            "nonpad_kv_seqlen": device.allocate((1,), "int64"),
        }
        self._states = device.allocate((self._capacity, self._hidden_size), "float32")
        self._logit_rows = PASS_SIZES[0]
        self._logits = device.allocate((self._logit_rows, self._text_rows), "float32")
        self._device = device
        self._action_head = device.action_head(self._action_weight)
        for name, table in self._tables.items():
            self._model.bind(f"{name}_cache", device.keep(table), table.shape)
        self._caches = self._allocate_caches(bundle)
        if self._in_place:
            self._bind_caches()
        if use_prefix:
            prompt = bundle.prompt()
            ids = np.array(prompt.prefix_ids[: prefix_length(prompt)], np.int64)
            if len(ids):
                self.extend(self.embed(ids), 1)
                self._prefix_length = self._length

    def _allocate_caches(self, bundle: Bundle) -> dict[str, list[Any]]:
        """Return the memory of each layer's keys and values: one each where it is used in place."""
        manifest = bundle.manifest
        dtype, count = FLOAT_TYPES[manifest.precision.activations], KV_COPIES[manifest.dialect]
        empty = np.zeros(self._cache_shape, dtype)
        return {
            f"{layer}.{part}": [self._device.keep(empty) for _ in range(count)]
            for layer in range(manifest.geometry.language.num_hidden_layers)
            for part in ("key", "value")
        }

    def _bind_caches(self) -> None:
        """Let the next pass read what the last one wrote; two memories change places."""
        for name, memory in self._caches.items():
            self._model.bind(f"past_key_values.{name}", memory[0], self._cache_shape)
            self._model.bind(f"present.{name}", memory[-1], self._cache_shape)
            memory.reverse()

    def action_logits(self, hidden: Float) -> Float:
        """The action rows, by the device: float16 on a GPU at every precision."""
        return self._action_head(hidden)

    @property
    def works_ahead(self) -> bool:
        """A pass whose states nobody asks for is put on the device's queue, and that is all."""
        return True

    def _padding(self, count: int) -> int:
        return fits(PASS_SIZES, count, self._capacity - self._length) - count

    def _pass(self, embeddings: Float, rows: NDArray[np.int64]) -> Pending:
        start, count = self._length, len(embeddings)
        given: dict[str, NDArray[Any]] = {
            "embeddings": embeddings,
            "rows": rows,
            "positions": np.arange(start, start + count)[None],
            "write_indices": np.array([start]),
            "nonpad_kv_seqlen": np.array([start + count]),
        }
        for name, array in given.items():
            self._inputs[name].write(array)
            self._model.bind(name, self._inputs[name], array.shape)
        shape = len(rows), self._hidden_size
        self._model.bind("hidden", self._states, shape)
        if not self._in_place:
            self._bind_caches()
        self._model.run()
        return self._states.fetch(shape)

    def _text_logits(self, hidden: Float) -> Float:
        count = len(hidden)
        if count > self._logit_rows:  # 0.6 MB a row: as many as were asked for at once so far
            self._logit_rows = count
            self._logits = self._device.allocate((count, self._text_rows), "float32")
        given, found = self._inputs["embeddings"], self._logits
        given.write(hidden)
        self._head.bind("hidden", given, hidden.shape)
        self._head.bind("logits", found, (count, self._text_rows))
        self._head.run()
        return found.read((count, self._text_rows))
