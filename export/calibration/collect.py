"""Statistics of every linear layer's input, and how large other values are, a layer at a time.

All scenes go through one step of the model (a block, a layer), their states are written down, then
the next step begins: so neither the model nor the scenes' states are ever in memory as a whole, and
a run that was interrupted goes on behind the last step that was finished.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save

from autovla_rt.config import Camera, Geometry
from autovla_rt.errors import CalibrationError
from autovla_rt.export.calibration.record import RECORD, CalibrationRecord
from autovla_rt.export.calibration.sample import Sample
from autovla_rt.export.calibration.statistics import Collector, write_statistics
from autovla_rt.export.graph.eager import Branches, EagerOps, Held, arrays_of, largest_of
from autovla_rt.export.graph.float16 import INPUT, OUTPUT
from autovla_rt.export.graph.language import language_layer
from autovla_rt.export.graph.ops import Value
from autovla_rt.export.graph.vision import vision_block, vision_embedding, vision_merger
from autovla_rt.export.passes.static_mrope import VideoSpan, mrope_positions, rotary_tables
from autovla_rt.export.passes.static_windows import static_windows
from autovla_rt.export.progress import Progress
from autovla_rt.export.weight_source import TEXT_HEAD, WeightSource, matrix_chunks
from autovla_rt.output_file import make_folder, write_file

Float = NDArray[np.float32]
States = dict[str, NDArray[np.float32]]
"""What one batch of scenes is between two steps, by name."""

BATCH = 2
"""Scenes that go through a step together: the weights are read once for them."""

RUNNING = "running.json"
STATES = "states"
SUFFIX = ".safetensors"


@dataclass(frozen=True)
class Plan:
    """What is to be calibrated.

    Attributes:
        weights: The checkpoint.
        geometry: Of the model.
        record: What is written beside the statistics.
    """

    weights: WeightSource
    geometry: Geometry
    record: CalibrationRecord

    @property
    def cameras(self) -> tuple[Camera, ...]:
        """In the order of the prompt."""
        return self.record.cameras

    @property
    def videos(self) -> dict[str, int]:
        """First position of each camera's visual tokens in the prompt."""
        return {video.camera: video.start for video in self.record.prompt.videos}


def collect(plan: Plan, samples: Sequence[Sample], folder: Path, progress: Progress) -> None:
    """Write STEP.safetensors for every step of the model into `folder`.

    Raises:
        CalibrationError: `folder` holds an interrupted run of something else, or a layer's inputs
            are not finite or all 0.
        StorageError: the file system refused.
    """
    batches = [samples[start : start + BATCH] for start in range(0, len(samples), BATCH)]
    run = _Run(plan, folder)
    run.begin()
    steps = step_names(plan.geometry)
    progress.stage("calibration", len(steps) * len(batches))
    for index, name in enumerate(steps):
        if run.is_done(name):
            progress.advance(len(batches))
            continue
        collector = Collector()
        for number, batch in enumerate(batches):
            states = run.states(index, number) if index else _first_states(batch)
            run.keep(index + 1, number, _advance(plan, name, batch, states, collector))
            progress.advance(1)
        write_statistics(folder / f"{name}{SUFFIX}", collector.result(), collector.magnitudes)
        run.forget(index)
    run.end()


def step_names(geometry: Geometry) -> list[str]:
    """Return the steps of a model, in order."""
    return [
        "visual.patch_embed",
        *(f"visual.blocks.{index}" for index in range(geometry.vision.depth)),
        "visual.merger",
        *(f"model.layers.{index}" for index in range(geometry.language.num_hidden_layers)),
    ]


class _Run:
    """The files of a run: which steps are done, and the states that the next one begins with."""

    def __init__(self, plan: Plan, folder: Path) -> None:
        self._record, self._folder = plan.record.model_dump_json(indent=1).encode(), folder

    def begin(self) -> None:
        """Go on with this run, or begin it."""
        make_folder(self._folder)
        path = self._folder / RUNNING
        if not path.exists():
            if any(self._folder.iterdir()):
                raise CalibrationError(
                    f"{self._folder}: expected a new or empty folder, or one of a calibration that "
                    "was interrupted. It was not touched: choose another --out."
                )
            write_file(path, self._record)
        elif path.read_bytes() != self._record:
            raise CalibrationError(
                f"{self._folder}: expected to go on with an interrupted calibration, but it was of "
                "another checkpoint, other scenes or settings. It was not touched: give the same "
                "again, or choose another --out."
            )

    def is_done(self, step: str) -> bool:
        """Whether a step's statistics are there."""
        return (self._folder / f"{step}{SUFFIX}").exists()

    def states(self, index: int, batch: int) -> States:
        """Read what step `index` begins with."""
        return load_file(self._path(index, batch))

    def keep(self, index: int, batch: int, states: States) -> None:
        """Write down what step `index` begins with."""
        path = self._path(index, batch)
        make_folder(path.parent)
        write_file(path, save(states))

    def forget(self, index: int) -> None:
        """Remove what a step began with, now that it is done."""
        shutil.rmtree(self._path(index, 0).parent, ignore_errors=True)

    def end(self) -> None:
        """Say that it is finished, and remove what only a run needs."""
        shutil.rmtree(self._folder / STATES, ignore_errors=True)
        write_file(self._folder / RECORD, self._record)
        (self._folder / RUNNING).unlink()

    def _path(self, index: int, batch: int) -> Path:
        return self._folder / STATES / str(index) / f"{batch}{SUFFIX}"


def _first_states(batch: Sequence[Sample]) -> States:
    return {
        f"{number}/{camera}": patches
        for number, sample in enumerate(batch)
        for camera, patches in sample.read_patches().items()
    }


def _advance(
    plan: Plan, step: str, batch: Sequence[Sample], states: States, collector: Collector
) -> States:
    """Take a batch through a step."""
    part, _, rest = step.partition(".")
    if part == "visual":
        after = _vision_step(plan, rest, states, collector)
        return _placed(plan, batch, after) if rest == "merger" else after
    return _language_step(plan, int(rest.rpartition(".")[2]), batch, states, collector)


def _vision_step(plan: Plan, step: str, states: States, collector: Collector) -> States:
    """Take every camera through a step of the vision tower, those of one grid together."""
    vision = plan.geometry.vision
    after: States = {}
    for grid in sorted({camera.grid[1:] for camera in plan.cameras}):
        windows = static_windows(vision, *grid)
        cameras = {camera.name for camera in plan.cameras if camera.grid[1:] == grid}
        ops = EagerOps(plan.weights, observe=_Observer(collector), measure=collector.measure)
        names = sorted({_of(name) for name in states if name.split("/")[1] in cameras})
        if step == "patch_embed":
            patches = ops.hold([states[name] for name in names])
            pair = vision_embedding(ops, vision, windows, patches)
        else:
            pair = _held(ops, states, names)
            if step == "merger":
                features = vision_merger(ops, vision, windows, pair[1])
                for name, array in zip(names, arrays_of(features), strict=True):
                    after[name] = array.reshape(-1, vision.out_hidden_size)
                continue
            pair = vision_block(ops, vision, windows, int(step.partition(".")[2]), pair)
        after.update(_named(pair, names))
    return after


def _placed(plan: Plan, batch: Sequence[Sample], features: States) -> States:
    """Return what the language model begins with: tokens' embeddings, and features in place."""
    ops = EagerOps(plan.weights)
    names, embedded = [], []
    for number, sample in enumerate(batch):
        rows = _embeddings(plan.weights, np.concatenate([part.ids for part in sample.parts]))
        for camera, start in plan.videos.items():
            placed = features[f"{number}/{camera}"]
            rows[start : start + len(placed)] = placed
        names.append(str(number))
        embedded.append(rows)
    x = ops.hold(embedded)
    epsilon = plan.geometry.language.rms_norm_eps
    return _named((x, ops.rms_norm(x, "model.layers.0.input_layernorm.weight", epsilon)), names)


def _language_step(
    plan: Plan, index: int, batch: Sequence[Sample], states: States, collector: Collector
) -> States:
    """Take every scene through a layer; the last one's output is what the text head reads."""
    language = plan.geometry.language
    names = [str(number) for number in range(len(batch))]
    weights = [np.concatenate([part.weights for part in sample.parts]) for sample in batch]
    layouts = [
        Branches.of(len(of.prompt.ids), [len(answer.ids) for answer in of.answers]) for of in batch
    ]
    spans = [VideoSpan(plan.videos[camera.name], camera.grid) for camera in plan.cameras]
    longest = max(int(layout.position.max()) + 1 for layout in layouts)
    tables = rotary_tables(plan.geometry, mrope_positions(plan.geometry, spans, longest))
    observer = _Observer(collector, weights)
    ops = EagerOps(plan.weights, tables, layouts, observer, measure=collector.measure)
    pair = language_layer(ops, language, index, _held(ops, states, names))
    if index + 1 == language.num_hidden_layers:
        final = arrays_of(pair[1])
        observer((TEXT_HEAD,), pair[1], final)
        read = [of[len(sample.prompt.ids) - 1 :] for of, sample in zip(final, batch, strict=True)]
        _measure_head(plan.weights, np.concatenate(read), collector)
    return _named(pair, names)


def _measure_head(weights: WeightSource, states: Float, collector: Collector) -> None:
    """Measure the text head, a chunk at a time, at the positions [n, hidden] that answers read."""
    collector.measure(f"{TEXT_HEAD}.{INPUT}", largest_of(states))
    for chunk in matrix_chunks(weights, (TEXT_HEAD,)):
        logits = states @ chunk.T
        collector.measure(f"{TEXT_HEAD}.{OUTPUT}", largest_of(logits.reshape(-1, 1)))


class _Observer:
    """Hands a layer's input to the collector, once for all layers that read it."""

    def __init__(self, collector: Collector, weights: list[Float] | None = None) -> None:
        self._collector, self._weights = collector, weights
        self._seen: set[Value] = set()

    def __call__(self, modules: tuple[str, ...], name: Value, rows: list[Float]) -> None:
        if name in self._seen:
            return
        self._seen.add(name)
        for index, part in enumerate(rows):
            counts = (
                np.ones(len(part), np.float32) if self._weights is None else (self._weights[index])
            )
            self._collector.add(modules[0], part, counts)


def _embeddings(weights: WeightSource, ids: NDArray[np.int64]) -> Float:
    unique, where = np.unique(ids, return_inverse=True)
    name = "model.embed_tokens.weight"
    rows = [weights.rows(name, int(token), int(token) + 1)[0] for token in unique]
    return np.stack(rows)[where]


def _of(name: str) -> str:
    """Return the sample and the part that a state is of."""
    return "/".join(name.split("/")[:2])


def _held(ops: EagerOps, states: States, names: Sequence[str]) -> tuple[Held, Held]:
    x, normed = (ops.hold([states[f"{name}/{part}"] for name in names]) for part in PARTS)
    return x, normed


def _named(pair: tuple[Value, Value], names: Sequence[str]) -> States:
    return {
        f"{name}/{part}": array
        for part, value in zip(PARTS, pair, strict=True)
        for name, array in zip(names, arrays_of(value), strict=True)
    }


PARTS = ("x", "normed")
"""The residual stream, and what the next norm makes of it."""
