"""What each setting of an engine costs, at the real geometry.

    python bench/settings.py ENGINE [--passes 3] [--only NAME ...]

ENGINE is a bundle of the 3B geometry. Every setting differs from the shipped one in one thing and
is measured in a process of its own: prefill of 833 positions behind the prefix, passes of 2 and of
10 rows behind the whole prompt, the vision tower over six pairs of frames and over three, and the
most memory that the process had.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from autovla_rt import ort_session
from autovla_rt.bundle import load_bundle
from autovla_rt.config import Precision
from autovla_rt.openvino_library import ov
from autovla_rt.openvino_model import OpenVinoModel
from autovla_rt.runtime.engines import open_engines

PREFILL = 833
ROWS = (2, 10)
PAIRS = (6, 3)
THREADS = "INFERENCE_NUM_THREADS"
GROUP = "DYNAMIC_QUANTIZATION_GROUP_SIZE"
KEYS = "KV_CACHE_PRECISION"
SETTINGS: dict[str, dict[str, Any]] = {
    "shipped": {},
    "one thread": {THREADS: 1},
    "float32 between products": {"INFERENCE_PRECISION_HINT": "f32", KEYS: "f32"},
    "groups of 64": {GROUP: 64},
    "groups of 32": {GROUP: 32},
    "threads pinned": {"ENABLE_CPU_PINNING": True},
    "work shared out as cores get free": {"TBB_PARTITIONER": "AUTO"},
    "keys and values in 8 bits": {KEYS: "u8"},
    "no memory arena (ONNX Runtime)": {"enable_cpu_mem_arena": False},
}
"""What OpenVINO's plugin is told, or ONNX Runtime's session."""


def change_openvino(changes: dict[str, Any]) -> None:
    """Let OpenVINO's models be compiled with changed settings.

    Keys in 8 bits have scales between them: the cache begins empty then, and a prefix is only a
    number of positions.
    """
    shipped = OpenVinoModel.settings

    def changed(
        model: OpenVinoModel, threads: int | None, precision: Precision, weights: str
    ) -> dict[str, Any]:
        return {**shipped(model, threads, precision, weights), **changes}

    def keep_empty(model: OpenVinoModel, name: str, _states: Any, blocks: int) -> None:
        port = model._compiled.input(name)
        shape = [blocks, *(size.get_length() for size in list(port.get_partial_shape())[1:])]
        held = np.zeros(shape, np.uint8)
        model._kept.append(held)
        model._request.set_tensor(name, ov.Tensor(held))

    OpenVinoModel.settings = changed
    if changes.get(KEYS) == "u8":
        OpenVinoModel.keep_cache = keep_empty


def change_onnx_runtime(changes: dict[str, Any]) -> None:
    """Let ONNX Runtime's sessions be opened with changed options."""
    options = ort_session.ort.SessionOptions

    def changed() -> Any:
        made = options()
        for name, value in changes.items():
            setattr(made, name, value)
        return made

    ort_session.ort.SessionOptions = changed


def measure(engine: Path, changes: dict[str, Any], passes: int) -> dict[str, float]:
    """Return medians in milliseconds under changed settings."""
    bundle = load_bundle(engine)
    change = change_openvino if bundle.manifest.backend == "openvino" else change_onnx_runtime
    change(changes)
    vision, language = open_engines(bundle, None)
    rng = np.random.default_rng(0)
    prefix = language.prefix_length
    tokens = language.embed(rng.integers(0, 1000, PREFILL))

    def prefill() -> None:
        language.truncate(prefix)
        language.extend(tokens, 1)

    found = {"prefill": median_ms(prefill, passes)}
    for rows in ROWS:

        def one_pass(rows: int = rows) -> None:
            language.extend(tokens[:rows])
            language.truncate(prefix + PREFILL)

        found[f"{rows} rows"] = median_ms(one_pass, 5 * passes)
    (grid,) = {camera.grid[1:] for camera in bundle.manifest.cameras}
    width = bundle.manifest.geometry.vision.patch_width
    for pairs in PAIRS:
        patches = rng.standard_normal((pairs, grid[0] * grid[1], width), np.float32)
        found[f"{pairs} pairs"] = median_ms(lambda p=patches: vision.encode(p, grid), passes)
    found["peak MiB"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return found


def median_ms(function: Callable[[], object], count: int) -> float:
    """Return the median of so many calls after one."""
    function()
    seconds = []
    for _ in range(count):
        start = time.perf_counter()
        function()
        seconds.append(time.perf_counter() - start)
    return float(np.median(seconds)) * 1e3


def main() -> None:
    """Read the arguments; measure each setting in a process of its own, print JSON lines."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("engine", type=Path)
    parser.add_argument("--passes", type=int, default=3)
    parser.add_argument("--only", nargs="*", default=list(SETTINGS), choices=list(SETTINGS))
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.here:
        (name,) = given.only
        found = measure(given.engine, SETTINGS[name], given.passes)
        print(json.dumps({"setting": name, **{k: round(v, 1) for k, v in found.items()}}))
        return
    for name in given.only:
        command = [sys.executable, __file__, str(given.engine), "--passes", str(given.passes)]
        subprocess.run([*command, "--here", "--only", name], check=True)


if __name__ == "__main__":
    main()
