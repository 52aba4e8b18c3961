"""What a plan costs on any hardware: work, weights read, passes, tokens, patches.

    python bench/ledger.py ENGINE [--ticks 8]

Multiplications are counted from the graphs that run (a multiplication and an addition are two
FLOPs), weights from what the graphs hold, once a pass. "Official" is what transformers' generate
does with the same model, prompt and answer: every visual patch and prompt token anew, a pass and
the whole head for each token of the answer, weights in bfloat16. Ours is a stream of fast plans,
the first and the last of `--ticks` requests: of drives through the miniature's world where the
engine is for its frames, else of noise. Random weights say the same whatever they see, so all their
drafts are right; "at AutoVLA's prompt" therefore counts the same graphs for the lengths of the
official prompt and answer and for given numbers of passes, without running them.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path

import numpy as np
import onnx
from drive_requests import TICK, drive_requests
from noise import noise_requests, sees_the_world

from autovla_rt.bundle import Bundle, load_bundle
from autovla_rt.config import VisionGeometry
from autovla_rt.export.passes.static_windows import static_windows
from autovla_rt.prefix import ROWS
from autovla_rt.runtime.backends import Float
from autovla_rt.runtime.backends.ort import OrtLanguage, OrtVision
from autovla_rt.runtime.planner import Planner
from autovla_rt.runtime.sampling import Sampler, Sampling
from autovla_rt.runtime.scene import Request
from autovla_rt.runtime.stream import Stream
from autovla_rt.runtime.trace import Trace

BFLOAT16_BYTES = 2
PROMPT_TOKENS, PREFIX_TOKENS, ANSWER_TOKENS = 1209, 377, 45
"""Of the official prompt with chain of thought, its constant part, and the fast answer."""
SEED = 2_900_000_000


@dataclass
class Ledger:
    """Costs of one request.

    Attributes:
        patches: Visual patches encoded.
        prefill_tokens: Positions of the first pass that are the prompt's.
        passes: Forward passes of the language model, the prefill included.
        rows: Positions of all passes.
        flops: By part: vision, language, heads.
        weight_bytes: Read from memory, once a pass or call, by part.
    """

    patches: int = 0
    prefill_tokens: int = 0
    passes: int = 0
    rows: int = 0
    flops: dict[str, int] = field(default_factory=lambda: dict.fromkeys(PARTS, 0))
    weight_bytes: dict[str, int] = field(default_factory=lambda: dict.fromkeys(PARTS, 0))

    def add(self, part: str, flops: int, weight_bytes: int) -> None:
        """Add work of a part."""
        self.flops[part] += flops
        self.weight_bytes[part] += weight_bytes


PARTS = ("vision", "language", "heads")


@dataclass(frozen=True)
class Matrices:
    """The weight matrices of a graph.

    Attributes:
        elements: Of those that are multiplied with every row.
        read_elements: Of those behind the gather of the rows that are read.
        weight_bytes: Of everything that the graph holds.
    """

    elements: int
    read_elements: int
    weight_bytes: int


def matrices(path: Path) -> Matrices:
    """Count a graph's matrices; the weight of a merger counts a quarter, for a quarter of rows."""
    graph = onnx.load(str(path), load_external_data=False).graph
    stored = {tensor.name: tensor for tensor in graph.initializer}
    read, elements = {"rows"}, {False: 0, True: 0}
    for node in graph.node:
        if not read.isdisjoint(node.input):
            read.update(node.output)
        count = _matrix_elements(node, stored)
        if any("merger" in name for name in node.input):
            count //= 4
        elements[not read.isdisjoint(node.output)] += count
    size = sum(
        int(np.prod(t.dims) * onnx.helper.tensor_dtype_to_np_dtype(t.data_type).itemsize)
        for t in stored.values()
    )
    return Matrices(elements[False], elements[True], size)


def _matrix_elements(node: onnx.NodeProto, stored: dict[str, onnx.TensorProto]) -> int:
    if node.op_type == "MatMulNBits":
        sizes = {attribute.name: attribute.i for attribute in node.attribute}
        return int(sizes["K"] * sizes["N"])
    if node.op_type in ("MatMulIntegerToFloat", "Gemm", "MatMul"):
        return int(np.prod(stored[node.input[1]].dims))
    return 0


class Costs:
    """What calls of one bundle's engines cost."""

    def __init__(self, bundle: Bundle) -> None:
        manifest = bundle.manifest
        self.vision_geometry, self.language_geometry = (
            manifest.geometry.vision,
            manifest.geometry.language,
        )
        self.vision = {
            camera.grid[1:]: matrices(bundle.path("vision_{}x{}.onnx".format(*camera.grid[1:])))
            for camera in manifest.cameras
        }
        self.language = matrices(bundle.path("language.onnx"))
        self.text_head = matrices(bundle.path("text_head.onnx"))
        self.actions = manifest.actions.num_actions

    def vision_flops(self, grid: tuple[int, int], batch: int) -> int:
        """Work of `batch` temporal patches of one grid."""
        rows, columns = grid
        linear = 2 * self.vision[grid].elements * rows * columns
        return batch * (linear + vision_attention_flops(self.vision_geometry, rows, columns))

    def pass_flops(self, rows: int, past: int, read: int) -> int:
        """Work of a pass of `rows` behind `past` positions, `read` of whose states are wanted."""
        of = self.language_geometry
        seen = rows * past + rows * (rows + 1) // 2
        attention = 4 * of.num_hidden_layers * of.num_attention_heads * of.head_dim * seen
        return 2 * (rows * self.language.elements + read * self.language.read_elements) + attention


def vision_attention_flops(geometry: VisionGeometry, rows: int, columns: int) -> int:
    """Scores and weighted sums of all blocks for one temporal patch."""
    windowed = sum(n * size**2 for n, size in static_windows(geometry, rows, columns).groups)
    full = len(geometry.fullatt_block_indexes)
    pairs = full * (rows * columns) ** 2 + (geometry.depth - full) * windowed
    return 4 * geometry.hidden_size * pairs


class CountingVision(OrtVision):
    """A vision tower that notes what it costs."""

    def __init__(self, bundle: Bundle, costs: Costs) -> None:
        super().__init__(bundle)
        self.costs, self.ledger = costs, Ledger()

    def encode(self, patches: Float, grid: tuple[int, int]) -> Float:
        """Encode, and note it."""
        batch = len(patches)
        self.ledger.patches += batch * grid[0] * grid[1]
        weight_bytes = self.costs.vision[grid].weight_bytes
        self.ledger.add("vision", self.costs.vision_flops(grid, batch), weight_bytes)
        return super().encode(patches, grid)


class CountingLanguage(OrtLanguage):
    """A language model that notes what it costs."""

    def __init__(self, bundle: Bundle, costs: Costs) -> None:
        super().__init__(bundle)
        self.costs, self.ledger = costs, Ledger()

    def extend(self, embeddings: Float, last: int | None = None) -> Float:
        """Pass, and note it."""
        rows, past = len(embeddings), self.length
        flops = self.costs.pass_flops(rows, past, rows if last is None else last)
        self.ledger.add("language", flops, self.costs.language.weight_bytes)
        self.ledger.passes += 1
        self.ledger.rows += rows
        return super().extend(embeddings, last)

    def logits(self, hidden: Float) -> Float:
        """Apply the whole head, and note it."""
        flops = 2 * len(hidden) * self.costs.text_head.elements
        self.ledger.add("heads", flops, self.costs.text_head.weight_bytes)
        return super().logits(hidden)

    def choice_logits(self, hidden: Float, token_ids: tuple[int, int]) -> Float:
        """Apply the head of the decision, and note it."""
        self.ledger.add("heads", *_rows_cost(self._choice_weight, len(hidden)))
        return super().choice_logits(hidden, token_ids)

    def action_logits(self, hidden: Float) -> Float:
        """Apply the head of the actions, and note it."""
        self.ledger.add("heads", *_rows_cost(self._action_weight, len(hidden)))
        return super().action_logits(hidden)


def _rows_cost(weight: Float, rows: int) -> tuple[int, int]:
    return 2 * rows * weight.size, weight.nbytes


def official(costs: Costs, bundle: Bundle, prompt_tokens: int, answer_tokens: int) -> Ledger:
    """Return what transformers' generate does for the same request."""
    ledger = Ledger(prefill_tokens=prompt_tokens, passes=1 + answer_tokens)
    tower = max(of.elements + of.read_elements for of in costs.vision.values())
    for camera in bundle.manifest.cameras:
        batch, *grid = camera.grid
        ledger.patches += batch * grid[0] * grid[1]
        ledger.add("vision", costs.vision_flops((grid[0], grid[1]), batch), 0)
    ledger.add("vision", 0, BFLOAT16_BYTES * tower)
    language = costs.language.elements + costs.language.read_elements
    head = costs.text_head.elements + costs.actions * costs.language_geometry.hidden_size
    for index in range(ledger.passes):
        rows, past = (prompt_tokens, 0) if index == 0 else (1, prompt_tokens + index - 1)
        ledger.rows += rows
        ledger.add("language", costs.pass_flops(rows, past, rows), BFLOAT16_BYTES * language)
        ledger.add("heads", 2 * head, BFLOAT16_BYTES * head)
    return ledger


def specialised(costs: Costs, bundle: Bundle, passes: int) -> Ledger:
    """Return what a streamed fast plan of AutoVLA's prompt costs in so many passes.

    Every pass behind the prefill has as many rows as a plan has actions, which is the most.
    """
    poses, width = bundle.manifest.actions.num_poses, costs.language_geometry.hidden_size
    held = PREFIX_TOKENS - PREFIX_TOKENS % ROWS
    ledger = Ledger(prefill_tokens=PROMPT_TOKENS - held, passes=passes)
    for camera in bundle.manifest.cameras:
        batch, *grid = camera.grid
        new = batch // 2
        ledger.patches += new * grid[0] * grid[1]
        ledger.add("vision", costs.vision_flops((grid[0], grid[1]), new), 0)
    ledger.add("vision", 0, max(of.weight_bytes for of in costs.vision.values()))
    for index in range(passes):
        rows = ledger.prefill_tokens + ANSWER_TOKENS if index == 0 else poses
        past = held if index == 0 else PROMPT_TOKENS + ANSWER_TOKENS - poses
        ledger.rows += rows
        flops = costs.pass_flops(rows, past, ANSWER_TOKENS if index == 0 else poses)
        ledger.add("language", flops, costs.language.weight_bytes)
        ledger.add("heads", 2 * poses * costs.actions * width, 4 * costs.actions * width)
    return ledger


def at_the_official_prompt(costs: Costs, bundle: Bundle) -> dict[str, Ledger]:
    """Count a fast plan at the lengths of AutoVLA's own prompt, without running it."""
    return {
        "official": official(costs, bundle, PROMPT_TOKENS, ANSWER_TOKENS),
        **{f"ours, {n} passes": specialised(costs, bundle, n) for n in (10, 7, 4)},
    }


def markdown(ledgers: dict[str, Ledger]) -> str:
    """Return ledgers side by side."""
    rows: dict[str, Callable[[Ledger], str]] = {
        "visual patches encoded": lambda of: f"{of.patches:,}",
        "prompt tokens prefilled": lambda of: f"{of.prefill_tokens:,}",
        "passes of the language model": lambda of: str(of.passes),
        "rows of all passes": lambda of: f"{of.rows:,}",
        **{
            f"TFLOP, {part}": lambda of, part=part: f"{of.flops[part] / 1e12:.3f}" for part in PARTS
        },
        "weights read, GB": lambda of: f"{sum(of.weight_bytes.values()) / 1e9:.1f}",
    }
    lines = [f"| A fast plan, counted | {' | '.join(ledgers)} |", "|---" * (1 + len(ledgers)) + "|"]
    for name, cell in rows.items():
        lines.append(f"| {name} | {' | '.join(map(cell, ledgers.values()))} |")
    return "\n".join(lines) + "\n"


def requests(bundle: Bundle) -> Iterator[Request]:
    """Return requests 0.5 s apart that suit the bundle's cameras."""
    return drive_requests(SEED) if sees_the_world(bundle) else noise_requests(0)


def main() -> None:
    """Read the arguments, plan, print ledgers as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("engine", type=Path)
    parser.add_argument("--ticks", type=int, default=8)
    arguments = parser.parse_args()
    bundle = load_bundle(arguments.engine)
    costs = Costs(bundle)
    vision, language = CountingVision(bundle, costs), CountingLanguage(bundle, costs)
    planner = Planner(bundle, vision, language)
    stream, ours = Stream(planner), []
    prompt_tokens = answer_tokens = 0
    for tick, request in enumerate(islice(requests(bundle), arguments.ticks)):
        vision.ledger = language.ledger = Ledger()
        prompted = planner.encode(request, seen=stream.seen)
        decoded = stream.answer(
            prompted,
            request,
            time=TICK * tick,
            trace=Trace(),
            sampler=Sampler(Sampling()),
            mode="fast",
        )
        ours.append(language.ledger)
        prompt_tokens, answer_tokens = len(prompted.ids), len(decoded.output_ids)
        ours[-1].prefill_tokens = prompt_tokens - language.prefix_length
    table = {
        "precision": bundle.manifest.precision.model_dump(),
        "prompt tokens": prompt_tokens,
        "answer tokens": answer_tokens,
        "official": official(costs, bundle, prompt_tokens, answer_tokens),
        "first": ours[0],
        "steady": ours[-1],
        "at AutoVLA's prompt": at_the_official_prompt(costs, bundle),
    }
    print(json.dumps(table, default=asdict, indent=1))


if __name__ == "__main__":
    main()
