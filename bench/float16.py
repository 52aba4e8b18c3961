"""What float16 does to the `standard` graphs at the real geometry, computed in torch's half.

    python bench/float16.py write FOLDER [--blocks 32] [--layers 36]
    python bench/float16.py run FOLDER [--device cuda]

`write` describes the 3B model in float16 and in float32, without weights (a few megabytes). `run`
gives both the same random weights, which have none of a trained model's outliers, and compares
them token by token. It needs torch, onnx and NumPy alone, so it runs where autovla-rt does not.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

REPO = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(REPO / "tests" / "support")]

GRID = (16, 30)
"""Patches of a 1080p camera's frames."""
ROWS, NEW, CAPACITY = 512, 16, 768
"""Rows of a prefill and of the pass behind it; positions of the cache."""
FLOATS = ("float32", "float16")
PARTS = ("vision", "language", "text_head")


class NoWeights:
    """In place of a weight file: knows shapes and types, and stores nothing."""

    def __init__(self) -> None:
        self._tensors: dict[str, tuple[str, tuple[int, ...]]] = {}

    def __contains__(self, name: str) -> bool:
        return name in self._tensors

    def add(self, name: str, dtype: str, shape: tuple[int, ...], _chunks: Iterable[Any]) -> None:
        """Take note of a tensor."""
        self._tensors[name] = dtype, shape

    def proto(self, name: str) -> Any:
        """Return the ONNX initializer of a tensor that is nowhere."""
        from onnx import TensorProto

        from autovla_rt.export.weight_file import ELEMENT_TYPES

        dtype, shape = self._tensors[name]
        place = {"data_type": ELEMENT_TYPES[dtype], "data_location": TensorProto.EXTERNAL}
        return TensorProto(name=name, dims=shape, **place)


class Shapes:
    """In place of a checkpoint's weights: its shapes."""

    def __init__(self, geometry: Any, action_start_id: int) -> None:
        from autovla_rt.export.tensors.model_names import EMBEDDING, expected_shapes

        self._shapes = dict(expected_shapes(geometry))
        self._shapes["text_head.weight"] = action_start_id, self._shapes[EMBEDDING][1]

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor."""
        return self._shapes[name]

    def rows(self, name: str, start: int, stop: int) -> Any:
        """Zeros."""
        return np.zeros((stop - start, *self.shape(name)[1:]), np.float32)


def write(folder: Path, blocks: int, layers: int) -> None:
    """Write the graphs, and what they are given."""
    from random_checkpoint import GEOMETRY_3B

    from autovla_rt.config import SPARE_POSITIONS
    from autovla_rt.export.graph.dialect import Formats
    from autovla_rt.export.graph.language import language_model, text_head
    from autovla_rt.export.graph.standard import StandardOps
    from autovla_rt.export.graph.vision import vision_tower
    from autovla_rt.export.passes.static_mrope import mrope_positions, rotary_tables
    from autovla_rt.export.passes.static_windows import static_windows

    vision = GEOMETRY_3B.vision.model_copy(update={"depth": blocks})
    language = GEOMETRY_3B.language.model_copy(update={"num_hidden_layers": layers})
    geometry = GEOMETRY_3B.model_copy(update={"vision": vision, "language": language})
    windows = static_windows(vision, *GRID)
    describe = {
        "vision": lambda ops: vision_tower(ops, vision, windows),
        "language": lambda ops: language_model(ops, language),
        "text_head": lambda ops: text_head(ops, language),
    }
    source = Shapes(geometry, language.vocab_size - 2048)
    for floats in FLOATS:
        for part in PARTS:
            formats = Formats(lambda _module: "fp16", floats=floats, capacity=CAPACITY)
            ops = StandardOps(source, NoWeights(), formats)  # type: ignore[arg-type]
            describe[part](ops)
            path = folder / floats / f"{part}.onnx"
            path.parent.mkdir(parents=True, exist_ok=True)
            ops.save(path, part)
    cos, sin = rotary_tables(geometry, mrope_positions(geometry, [], CAPACITY + SPARE_POSITIONS))
    rng = np.random.default_rng(0)
    patches = rng.standard_normal((2, GRID[0] * GRID[1], vision.patch_width), np.float32)
    embeddings = rng.standard_normal((ROWS + NEW, language.hidden_size), np.float32)
    given = {"patches": patches, "embeddings": embeddings, "cos": cos, "sin": sin}
    np.savez(folder / "given.npz", **given)


def compare(folder: Path, device: str, parts: Sequence[str] = PARTS) -> Iterator[dict[str, Any]]:
    """Yield what became of each part in float16, against itself in float32."""
    from torch_graph import FUSED, ROUNDED

    given = dict(np.load(folder / "given.npz"))
    for part in parts:
        expected, _ = _results(folder, "float32", part, given, device, FUSED)
        for attention in (FUSED, ROUNDED)[: 1 if part == "text_head" else 2]:
            found, graph = _results(folder, "float16", part, given, device, attention)
            cosines = (found * expected).sum(-1) / (found.norm(dim=-1) * expected.norm(dim=-1))
            half = [of for of in graph.ranges.values() if of.dtype.itemsize == 2]
            yield {
                "part": part,
                "attention": attention,
                "device": device,
                "tokens": cosines.numel(),
                "cosine_least": float(cosines.min()),
                "cosine_mean": float(cosines.mean()),
                "largest_float16": max(of.largest for of in half),
                "largest_float32": max(of.largest for of in graph.ranges.values()),
                "overflowed": graph.overflowed(),
            }
        if part == "language":
            given["hidden"] = expected.float().cpu().numpy()


def _results(
    folder: Path, floats: str, part: str, given: dict[str, Any], device: str, attention: str
) -> tuple[Any, Any]:
    """Run one graph; language in two passes. Returns its result in float64, and the graph."""
    import torch
    from torch_graph import RandomWeights, TorchGraph

    weights = RandomWeights(device=device)
    graph = TorchGraph(folder / floats / f"{part}.onnx", device, attention, weights)
    if part != "language":
        read, made = ("patches", "features") if part == "vision" else ("hidden", "logits")
        return graph.run({read: given[read]})[made].double(), graph
    caches = {
        name: torch.zeros([dim.dim_value for dim in of.shape.dim], device=device)
        for name, of in graph.inputs.items()
        if name.startswith("past_key_values.")
    }
    states = []
    for start, stop in ((0, ROWS), (ROWS, ROWS + NEW)):
        found = graph.run(
            {
                "embeddings": given["embeddings"][start:stop],
                "rows": np.arange(stop - start),
                "positions": np.arange(start, stop)[None],
                "write_indices": np.array([start]),
                "nonpad_kv_seqlen": np.array([stop]),
                "cos_cache": given["cos"],
                "sin_cache": given["sin"],
                **caches,
            }
        )
        caches = {name: found[name.replace("past_key_values", "present")] for name in caches}
        states.append(found["hidden"].double())
    return torch.cat(states), graph


def main() -> None:
    """Read the arguments."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("write", "run"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--blocks", type=int, default=32)
    parser.add_argument("--layers", type=int, default=36)
    parser.add_argument("--device", default="cpu")
    given = parser.parse_args()
    if given.what == "write":
        write(given.folder, given.blocks, given.layers)
    else:
        for line in compare(given.folder, given.device):
            print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
