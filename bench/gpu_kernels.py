"""Times of the compiled GPU kernels on this machine's device, against what its memory allows.

    python bench/gpu_kernels.py FOLDER...    # of kernels/aot.py, for this device; JSON lines

Each kernel reads other memory each time, more in all than the cache holds, as between two passes of
a model. Sizes are AutoVLA's: twelve frames of 1920x1080 to 420x224, 2,048 actions of width 2,048.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from gpu_device import Device, spread
from numpy.typing import NDArray

from autovla_rt.config import Preprocessing, VisionGeometry
from autovla_rt.kernels import action_layout
from autovla_rt.kernels.resize_plan import level_values, plan_resize
from autovla_rt.kernels.variants import TOP_COUNTS, head_name
from autovla_rt.runtime.backends.cuda_kernels import CudaKernels

BYTES_PER_S = {"NVIDIA H100 80GB HBM3": 3.35e12, "NVIDIA H200": 4.8e12}
"""Peak memory bandwidth by NVIDIA's data sheets."""

ROUNDS = 50
BYTES_BETWEEN = 400e6
"""Other memory that is read before the same memory again: several times an H100's cache."""

VISION = VisionGeometry(
    depth=32,
    hidden_size=1280,
    num_heads=16,
    intermediate_size=3420,
    out_hidden_size=2048,
    fullatt_block_indexes=(7, 15, 23, 31),
)
FRAMES, SIZE, RESIZED = 12, (1080, 1920), (224, 420)
ACTIONS, WIDTH, BLOCK = action_layout.MAX_ACTIONS, 2048, 128
ROWS = (1, 10)

Arrays = dict[str, NDArray[Any]]


class Work:
    """One kernel with its inputs.

    Args:
        name: Of the kernel.
        programs: Of a launch.
        arrays: All on the device.
        numbers: Other arguments.
        varied: Arrays that are others in each launch.
        about: What the line says beside the times.
    """

    def __init__(
        self,
        name: str,
        programs: tuple[int, int, int],
        arrays: Arrays,
        numbers: dict[str, int],
        varied: tuple[str, ...],
        about: dict[str, Any],
    ) -> None:
        self.name, self.programs, self.arrays, self.numbers = name, programs, arrays, numbers
        self.varied, self.about = varied, about

    @property
    def bytes(self) -> int:
        """Bytes that a launch must move: each input read once, each output written once."""
        return sum(array.nbytes for array in self.arrays.values())

    def launches(self, device: Device, kernels: CudaKernels) -> list[Callable[[], None]]:
        """Return launches that together read `BYTES_BETWEEN`."""
        shared = {
            name: device.upload(array)
            for name, array in self.arrays.items()
            if name not in self.varied
        }
        size = sum(self.arrays[name].nbytes for name in self.varied)
        return [
            self._launch(device, kernels, shared) for _ in range(max(4, int(BYTES_BETWEEN / size)))
        ]

    def _launch(
        self, device: Device, kernels: CudaKernels, shared: dict[str, int]
    ) -> Callable[[], None]:
        own = {name: device.upload(self.arrays[name]) for name in self.varied}
        arguments = {**shared, **own, **self.numbers}
        return lambda: kernels.launch(self.name, self.programs, arguments, device.stream)


def main() -> None:
    """Measure every folder's kernels and print a line each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folders", type=Path, nargs="+")
    given = parser.parse_args()
    with Device() as device:
        copied = _copy_bandwidth(device)
        print(json.dumps({"device": device.name, "sm": device.sm, "copy_bytes_per_s": copied}))
        for folder in given.folders:
            for work in (_resize(), *_heads()):
                line = measure(device, CudaKernels(folder), work, copied)
                print(json.dumps({"folder": str(folder), **line}), flush=True)


def measure(device: Device, kernels: CudaKernels, work: Work, copied: float) -> dict[str, Any]:
    """Return the times of a kernel, and what memory alone would take.

    `floor_ms` is of the data sheet's bandwidth (None for a device that the table lacks),
    `copy_floor_ms` of what a copy on this device reached.
    """
    launches = work.launches(device, kernels)
    times = device.times(launches, ROUNDS)
    start = time.perf_counter()
    for launch in launches:
        launch()
    python = (time.perf_counter() - start) / len(launches)
    device.wait()
    peak = BYTES_PER_S.get(device.name)
    device.free()
    return {
        "kernel": work.name,
        **work.about,
        "bytes": work.bytes,
        **spread(times),
        "floor_ms": None if peak is None else round(work.bytes / peak * 1e3, 5),
        "copy_floor_ms": round(work.bytes / copied * 1e3, 5),
        "rounds": ROUNDS,
        "launches_a_round": len(launches),
        "python_launch_ms": round(python * 1e3, 5),
    }


def _copy_bandwidth(device: Device) -> float:
    """Return bytes a second, read and written, of copies of 512 MiB in device memory."""
    size = 1 << 29
    source, to = (device.upload(np.zeros(size, np.uint8)) for _ in range(2))
    times = device.times([lambda: device.copy(to, source, size)] * 4, 10)
    device.free()
    return 2 * size / spread(times)["median_ms"] * 1e3


def _resize() -> Work:
    plan = plan_resize(SIZE, RESIZED)
    pixels = np.random.default_rng(0).integers(0, 256, (FRAMES, *SIZE, 3), dtype=np.uint8)
    clips, tokens = FRAMES // VISION.temporal_patch_size, RESIZED[0] * RESIZED[1]
    patches = np.zeros((clips, tokens // VISION.patch_size**2, VISION.patch_width), np.float16)
    arrays = {
        "frames": plan.pitched(pixels),
        **plan.tables,
        "values": level_values(Preprocessing(), VISION).astype(np.float16),
        "patches": patches,
    }
    return Work(
        "resize_patchify",
        plan.grid(FRAMES),
        arrays,
        plan.sizes,
        ("frames", "patches"),
        {"frames": FRAMES, "size": SIZE, "resized": RESIZED},
    )


def _heads() -> Iterator[Work]:
    for weights in action_layout.BITS:
        for top in TOP_COUNTS:
            for rows in ROWS:
                yield _head(weights, top, rows)


def _head(weights: str, top: int, rows: int) -> Work:
    rng = np.random.default_rng(0)
    bits = action_layout.BITS[weights]
    # Any bits are codes; fp16 must be numbers.
    stored = (
        rng.standard_normal((ACTIONS, WIDTH)).astype(np.float16)
        if bits == 16
        else rng.integers(0, 256, (ACTIONS, WIDTH * bits // 8), dtype=np.uint8)
    )
    blocks = {16: 0, 8: 1, 4: WIDTH // BLOCK}[bits]
    arrays = {
        "hidden": rng.standard_normal((rows, WIDTH)).astype(np.float16),
        "weight": stored,
        "scales": rng.random(ACTIONS * blocks or 1).astype(np.float32) / 100,
        "allowed": action_layout.pack_mask(rng.random((rows, ACTIONS)) < 0.9),
        "logits": np.zeros((rows, ACTIONS), np.float32),
        "partial": np.zeros(action_layout.scratch_shape(ACTIONS, top), np.int64),
        "arrived": np.zeros(1, np.int32),
        "best_ids": np.zeros((rows, top), np.int32),
        "best_logits": np.zeros((rows, top), np.float32),
    }
    return Work(
        head_name(weights, top),
        (action_layout.programs(ACTIONS), 1, 1),
        arrays,
        {"rows": rows, "actions": ACTIONS},
        ("weight", "scales"),
        {"rows": rows, "actions": ACTIONS, "width": WIDTH},
    )


if __name__ == "__main__":
    main()
