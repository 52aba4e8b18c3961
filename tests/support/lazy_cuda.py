"""A model of NVIDIA's driver that does nothing before it must: memory, streams, events, graphs.

Work that is put on a stream waits there until the host waits for the stream, or for an event behind
it. So whatever relies on luck (a buffer written while a copy of it waits, a result read before it
is there) gives wrong numbers, every time. "Device memory" is the host's, and kernels are computed
by their definition in NumPy from the arguments that they are launched with.

What the driver really does is tested on a device (tests/gpu).
"""

from __future__ import annotations

import ctypes
import threading
from dataclasses import dataclass, field
from types import SimpleNamespace

import numpy as np
from cuda.bindings import driver as real

from autovla_rt.cubin import read_index
from autovla_rt.kernels.patchify import patch_levels

DONE = (SimpleNamespace(value=0, name="CUDA_SUCCESS"),)
SM = 86


@dataclass
class Stream:
    """Work that was put and not done; while `captured` is a list, it goes there."""

    waiting: list = field(default_factory=list)
    captured: list | None = None


class LazyDriver:
    """What runtime/backends calls of cuda.bindings.driver.

    Args:
        bundle: Folder with the kernels' index.
        shares_memory: Whether host and device see the same bytes, as on Tegra.

    Attributes:
        log: What happened, in order: (what, stream).
    """

    CU_MEMHOSTALLOC_DEVICEMAP = real.CU_MEMHOSTALLOC_DEVICEMAP
    CUstream_flags, CUevent_flags = real.CUstream_flags, real.CUevent_flags
    CUdevice_attribute, CUstreamCaptureMode = real.CUdevice_attribute, real.CUstreamCaptureMode
    CUfunction_attribute = real.CUfunction_attribute

    def __init__(self, bundle=None, *, shares_memory=False):
        self.log, self.shares_memory = [], shares_memory
        self._memory, self._streams, self._graphs = {}, {}, []
        self._threads = set()
        self._loaded = iter([] if bundle is None else read_index(bundle).cubins)

    @property
    def allocated(self):
        return sum(map(len, self._memory.values()))

    def put(self, stream, what, work):
        """Put work on a stream."""
        assert threading.get_ident() in self._threads, "no context is current in this thread"
        queue = self._streams[stream]
        if queue.captured is None:
            self.log.append((what, stream))
            queue.waiting.append(work)
        else:
            queue.captured.append(work)

    def view(self, address, dtype, shape):
        """Return the memory at an address as an array."""
        for start, block in self._memory.items():
            if start <= address < start + len(block):
                break
        else:
            raise AssertionError(f"no memory at {address}")
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        assert address + size <= start + len(block), "beyond the end of its memory"
        raw = (ctypes.c_uint8 * size).from_address(address)
        return np.frombuffer(raw, dtype).reshape(shape)

    def _finish(self, stream, until=None):
        waiting = self._streams[stream].waiting
        assert until is None or until in waiting or until.is_done
        while waiting and not (until is not None and until.is_done):
            waiting.pop(0)()

    # Devices and contexts.
    def cuDeviceGet(self, index):
        return *DONE, index

    def cuDevicePrimaryCtxRetain(self, _device):
        return *DONE, 1

    def cuCtxSetCurrent(self, _context):
        self._threads.add(threading.get_ident())
        return DONE

    def cuCtxGetDevice(self):
        return *DONE, 0

    def cuDeviceGetName(self, _length, _device):
        return *DONE, b"a GPU that is late\0"

    def cuDeviceGetAttribute(self, name, _device):
        names = real.CUdevice_attribute
        known = {
            names.CU_DEVICE_ATTRIBUTE_INTEGRATED: int(self.shares_memory),
            names.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR: SM // 10,
            names.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR: SM % 10,
        }
        return *DONE, known[name]

    # Memory: filled with what nobody may rely on.
    def cuMemAlloc(self, size):
        block = (ctypes.c_uint8 * size).from_buffer(bytearray(b"\xa5" * size))
        self._memory[ctypes.addressof(block)] = block
        return *DONE, ctypes.addressof(block)

    def cuMemHostAlloc(self, size, _flags):
        return self.cuMemAlloc(size)

    def cuMemHostGetDevicePointer(self, address, _flags):
        assert self.shares_memory
        return *DONE, address

    def cuMemFree(self, address):
        assert not any(stream.waiting for stream in self._streams.values())
        del self._memory[address]
        return DONE

    cuMemFreeHost = cuMemFree

    def cuDriverGetVersion(self):
        return *DONE, 13020

    def cuMemGetInfo(self):
        return *DONE, 8 << 30, 8 << 30

    # Work.
    def cuStreamCreate(self, _flags):
        self._streams[stream := len(self._streams) + 1] = Stream()
        return *DONE, stream

    def cuStreamSynchronize(self, stream):
        self.log.append(("wait", stream))
        self._finish(stream)
        return DONE

    def cuMemsetD8Async(self, address, value, size, stream):
        self.put(stream, "set", lambda: self.view(address, np.uint8, size).fill(value))
        return DONE

    def _copy(self, target, source, size, stream):
        def copy():
            self.view(target, np.uint8, size)[:] = self.view(source, np.uint8, size)

        self.put(stream, "copy", copy)
        return DONE

    cuMemcpyDtoHAsync = cuMemcpyDtoDAsync = _copy

    def cuMemcpyHtoDAsync(self, target, source, size, stream):
        def copy():
            given = (ctypes.c_uint8 * size).from_address(source)  # may be any memory of the host
            self.view(target, np.uint8, size)[:] = np.frombuffer(given, np.uint8)

        self.put(stream, "copy", copy)
        return DONE

    def cuEventCreate(self, _flags):
        return *DONE, SimpleNamespace()

    def cuEventRecord(self, event, stream):
        def mark():
            mark.is_done = True

        mark.is_done = False
        event.mark, event.stream = mark, stream
        self.put(stream, "event", mark)
        return DONE

    def cuEventSynchronize(self, event):
        self.log.append(("wait for an event", event.stream))
        self._finish(event.stream, event.mark)
        return DONE

    # Graphs.
    def cuStreamBeginCapture(self, stream, _mode):
        self._streams[stream].captured = []
        return DONE

    def cuStreamEndCapture(self, stream):
        work, self._streams[stream].captured = self._streams[stream].captured, None
        return *DONE, work

    def cuGraphInstantiate(self, work, _flags):
        self._graphs.append(work)
        return *DONE, work

    def cuGraphDestroy(self, _graph):
        return DONE

    def cuGraphLaunch(self, work, stream):
        def replay():
            for step in work:
                step()

        self.put(stream, "replay", replay)
        return DONE

    def cuGraphExecDestroy(self, _graph):
        return DONE

    # Kernels.
    def cuModuleLoadData(self, _image):
        return *DONE, next(self._loaded)

    def cuModuleGetFunction(self, cubin, _entry):
        return *DONE, cubin

    def cuFuncSetAttribute(self, _function, _attribute, _value):
        return DONE

    def cuLaunchKernel(self, cubin, x, y, z, *rest):
        *_, stream, places, _ = rest
        count = len(cubin.arguments)
        slots = (ctypes.c_uint64 * count).from_address(
            (ctypes.c_uint64 * count).from_address(places)[0]
        )
        given = dict(zip((of.name for of in cubin.arguments), list(slots), strict=True))
        compute = {"resize_patchify": self._resize, "action_head": self._head}
        kernel = next(compute[name] for name in compute if cubin.name.startswith(name))
        self.put(stream, cubin.name, lambda: kernel(given, (x, y, z), cubin.constants))
        return DONE

    def _head(self, given, _programs, constants):
        rows, actions, width = given["rows"], given["actions"], constants["WIDTH"]
        hidden = self.view(given["hidden"], np.float16, (rows, width)).astype(np.float32)
        weight = self.view(given["weight"], np.float16, (actions, width)).astype(np.float32)
        self.view(given["logits"], np.float32, (rows, actions))[:] = hidden @ weight.T

    def _resize(self, given, programs, constants):
        """Both products with banded matrices, put together of their digits."""
        tile_columns, tile_rows, count = programs
        height, pitch = given["height"], given["pitch"]
        levels = self.view(given["frames"], np.uint8, (count, height, pitch))
        across = self._banded(given, "byte", tile_columns, constants["TILE_CHANNELS"])
        down = self._banded(given, "row", tile_rows, constants["TILE_ROWS"])
        out_height, out_width = given["out_height"], given["out_width"]
        by_byte = across(levels)  # [F, height, tiles, 32]
        planes = by_byte[..., : 3 * constants["TILE_PIXELS"]].reshape(
            count, height, tile_columns, 3, constants["TILE_PIXELS"]
        )
        rows = planes.transpose(0, 1, 2, 4, 3).reshape(count, height, -1, 3)[:, :, :out_width]
        by_row = down(rows.reshape(count, height, -1).swapaxes(1, 2))
        pixels = by_row.reshape(count, out_width * 3, -1)[..., :out_height].swapaxes(1, 2)
        frames = pixels.reshape(count, out_height, out_width, 3)
        patch, merge, clip = (constants[name] for name in ("PATCH", "MERGE", "CLIP"))
        width = 3 * clip * patch**2
        vision = SimpleNamespace(
            patch_size=patch,
            spatial_merge_size=merge,
            temporal_patch_size=clip,
            patch_width=width,
        )
        cut = patch_levels(frames, vision)
        values = self.view(given["values"], np.float16, (3, 256))
        channel = np.arange(width) // (clip * patch**2)
        self.view(given["patches"], np.float16, cut.shape)[:] = values[channel, cut]

    def _banded(self, given, axis, tiles, outputs):
        """Return what multiplies levels [..., inputs] by tables: [..., tiles, outputs]."""
        window = given[f"{axis}_window"]
        starts = self.view(given[f"{axis}_starts"], np.int32, tiles)
        digits = self.view(given[f"{axis}_digits"], np.int8, (tiles, 3, outputs, window))
        bias = self.view(given[f"{axis}_bias"], np.int32, (tiles, outputs))
        taps = (digits * np.array([1, 1 << 8, 1 << 16])[:, None, None]).sum(axis=1)

        def product(levels):
            signed = levels.astype(np.int64) - 128
            signed = np.pad(signed, [(0, 0)] * (signed.ndim - 1) + [(0, window)])
            parts = [
                (signed[..., start : start + window] @ tap.T + of) >> 22
                for start, tap, of in zip(starts, taps, bias, strict=True)
            ]
            return np.stack(parts, axis=-2).clip(0, 255).astype(np.uint8)

        return product
