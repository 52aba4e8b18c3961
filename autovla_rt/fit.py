"""`build --fit`: engines of all parts' precisions, measured, until one is as was asked.

What was measured is kept beside the bundle, so a run that was stopped goes on, and another wish
for the same model costs only what was not measured yet.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from autovla_rt.build_gate import BuildGate
from autovla_rt.bundle import load_bundle
from autovla_rt.errors import FitError
from autovla_rt.export.build import build_engine, camera_layout
from autovla_rt.export.calibration.record import read_record
from autovla_rt.export.opened_model import OpenedModel
from autovla_rt.export.progress import NoProgress, Progress
from autovla_rt.export.settings import Settings
from autovla_rt.export.targets import TARGETS
from autovla_rt.machine import peak_memory
from autovla_rt.output_file import make_folder
from autovla_rt.precision_search import (
    Candidate,
    Figures,
    Wish,
    alone,
    choices,
    finest,
    predict,
    ranked,
    spell,
)
from autovla_rt.runtime.decoding_options import Mode
from autovla_rt.runtime.device import describe_device
from autovla_rt.runtime.evaluation.gate import judge
from autovla_rt.runtime.evaluation.run import (
    Evaluation,
    close_engines,
    evaluate,
    kept_lines,
    scene_files,
)
from autovla_rt.runtime.evaluation.summary import summarise
from autovla_rt.runtime.planner import Planner
from autovla_rt.runtime.scene import read_scene

Record = dict[str, Any]

MEASUREMENTS = "measurements.jsonl"
LOSSES = ("action_kl", "decision_kl", "text_kl")
TIMED_SCENES, TIMED_REQUESTS = 8, 5
"""Scenes that an engine is timed on, and how often it plans each after one that does not count."""

TRIES = 8
"""Combinations that are built and judged whole before the search gives up."""

STRICTER = 0.8
"""Of the loss of a combination that failed the gate, what the next one may have."""


@dataclass(frozen=True)
class Measurement:
    """One engine, measured.

    Attributes:
        precision: As --precision takes it.
        figures: What the search goes by.
        bundle_mb: Size of its files.
        summary: Of its evaluation against the reference (`summarise`).
    """

    precision: str
    figures: Figures
    bundle_mb: float
    summary: Record


@dataclass(frozen=True)
class Found:
    """What a search came to.

    Attributes:
        chosen: The combination that passed, with what was predicted of it.
        measured: It, measured.
        candidates: All combinations, predicted.
        alone: (part, precision) -> each part measured alone.
        tried: All combinations that were measured whole, the chosen one last.
        base: The reference, measured.
    """

    chosen: Candidate
    measured: Measurement
    candidates: list[Candidate]
    alone: dict[tuple[str, str], Measurement]
    tried: list[Measurement]
    base: Measurement


def fit_folder(out: Path) -> Path:
    """Return where the measurements for a bundle are kept, beside it."""
    place = out.resolve()
    return place.with_name(f"{place.name}.fit")


class Bench:
    """Builds engines of one model for the while, and measures them.

    Args:
        model: The checkpoint.
        settings: Of the engine; its precision is not looked at.
        gate: Scenes, and the engine that all are compared with.
        folder: Keeps what was measured.
        progress: Is told how far it is.
        threads: Of each engine; None takes every core.
    """

    def __init__(
        self,
        model: OpenedModel,
        settings: Settings,
        gate: BuildGate,
        folder: Path,
        progress: Progress,
        threads: int | None = None,
    ) -> None:
        self._model, self._settings, self._reference = model, settings, gate.reference
        self._scenes, self._sensor_root = scene_files(gate.scenes), gate.sensor_root
        self._folder, self._progress, self._threads = folder, progress, threads
        make_folder(folder)
        self._known = _read(folder / MEASUREMENTS, self._identity())

    def measure(self, precision: str) -> Measurement:
        """Build an engine, evaluate it, time it; or return what is known of it.

        Raises:
            InputError: a scene is unusable.
            AutovlaError: as `build_engine`.
        """
        if precision not in self._known:
            self._known[precision] = self._measured(precision)
        return self._known[precision]

    def _measured(self, precision: str) -> Measurement:
        self._progress.stage(f"measuring {precision}", len(self._scenes))
        settings = replace(self._settings, name="candidate").with_precision(precision)
        engine, lines = self._folder / "candidate", self._folder / "lines"
        shutil.rmtree(lines, ignore_errors=True)  # a killed run's, perhaps of another precision
        try:
            build_engine(self._model, settings, engine, NoProgress())
            evaluation = Evaluation(engine, self._reference, self._sensor_root, self._threads)
            records = []
            for record in evaluate(evaluation, self._scenes, lines):
                records.append(record)
                self._progress.advance(1)
            close_engines()
            summary = summarise(records)
            ms, mib = measure_speed(engine, self._scenes, self._sensor_root, self._threads)
            size = sum(path.stat().st_size for path in engine.iterdir() if path.is_file()) / 1e6
        finally:
            close_engines()
            for made in (engine, lines):
                shutil.rmtree(made, ignore_errors=True)
        measurement = Measurement(precision, Figures(loss_of(records), ms, mib), size, summary)
        line = asdict(measurement)
        with (self._folder / MEASUREMENTS).open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        return measurement

    def _identity(self) -> Record:
        """Return what a measurement depends on, besides the precision."""
        settings, calibration = self._settings, None
        if settings.calibration is not None:
            calibration = read_record(settings.calibration).scenes_sha256
        cameras = camera_layout(self._model, settings)
        reference = load_bundle(self._reference).manifest
        return {
            "checkpoint": self._model.checkpoint.fingerprint(),
            "calibration": calibration,
            "modelopt": str(settings.modelopt),
            "target": settings.target,
            "int4_block": settings.int4_block,
            "kv_capacity": settings.kv_capacity,
            "cameras": [camera.model_dump(mode="json") for camera in cameras],
            "against": [reference.checkpoint.sha256, str(reference.precision)],
            "scenes": [path.stem for path in self._scenes],
            "threads": self._threads,
            "device": describe_device(),
        }


def loss_of(records: Sequence[Record]) -> float:
    """Return the KL in nats of actions, choice of mode and text, each a mean over its scenes."""
    loss = 0.0
    for name in LOSSES:
        values = [np.mean(record[name]) for record in records if name in record]
        loss += float(np.mean(values)) if values else 0.0
    return loss


def search(bench: Bench, settings: Settings, wish: Wish, limits: Mapping[str, float]) -> Found:
    """Measure each part alone, then combinations until one is as wished and passes the gate.

    Raises:
        FitError: no combination is.
    """
    target = TARGETS[settings.target]
    options = choices(target.precisions, target.kv, calibrated=settings.calibration is not None)
    base = bench.measure(spell(finest(options)))
    parts = {
        (part, name): bench.measure(spell(combination))
        for part, name, combination in alone(options)
    }
    candidates = predict(options, base.figures, {pair: of.figures for pair, of in parts.items()})
    tried: list[Measurement] = []
    most_loss = float("inf")
    for _ in range(TRIES):
        chosen = _next(candidates, wish, most_loss, tried)
        if chosen is None:
            break
        measured = bench.measure(chosen.precision)
        tried.append(measured)
        passed = all(check.passed for check in judge(measured.summary, limits))
        if passed and wish.allows(measured.figures):
            return Found(chosen, measured, candidates, parts, tried, base)
        if not passed:
            most_loss = STRICTER * chosen.figures.loss
        candidates = corrected(candidates, chosen, measured.figures)
    raise FitError(_nothing_fits(candidates, wish, limits, tried))


def corrected(candidates: list[Candidate], tried: Candidate, measured: Figures) -> list[Candidate]:
    """Shift all predictions by how far time and memory were off for one, if it was worse."""
    off = measured.minus(tried.figures)
    shift = Figures(0.0, max(off.ms, 0.0), max(off.mib, 0.0))
    return [replace(of, figures=of.figures.plus(shift)) for of in candidates]


def _next(
    candidates: list[Candidate], wish: Wish, most_loss: float, tried: list[Measurement]
) -> Candidate | None:
    known = {measurement.precision for measurement in tried}
    for candidate in ranked(candidates, wish, most_loss):
        if candidate.precision not in known:
            return candidate
    return None


def _nothing_fits(
    candidates: list[Candidate],
    wish: Wish,
    limits: Mapping[str, float],
    tried: list[Measurement],
) -> str:
    asked = [
        f"{name} at most {limit:g} {unit}"
        for name, limit, unit in (("latency", wish.latency, "ms"), ("memory", wish.memory, "MiB"))
        if limit is not None
    ]
    asked.append("plans within the gate")
    fastest = min(candidate.figures.ms for candidate in candidates)
    smallest = min(candidate.figures.mib for candidate in candidates)
    lines = [
        f"--fit: expected a combination of precisions with {', '.join(asked)}, found none among "
        f"{len(candidates)}; the fastest is predicted at {fastest:.4g} ms, the smallest at "
        f"{smallest:.4g} MiB."
    ]
    for measurement in tried:
        broken = [
            f"{check.name} {check.measured:.4g} (limit {check.limit:g})"
            for check in judge(measurement.summary, limits)
            if not check.passed
        ]
        figures = measurement.figures
        told = "; ".join(broken) or "within the gate"
        lines.append(
            f"  {measurement.precision}: {figures.ms:.4g} ms, {figures.mib:.4g} MiB, {told}"
        )
    lines.append("Ask for less, calibrate on more scenes, or set --gate.")
    return "\n".join(lines)


def measure_speed(
    engine: Path, scenes: Sequence[Path], sensor_root: Path, threads: int | None = None
) -> tuple[float, float]:
    """Return milliseconds of a fast plan and MiB at the peak, of a process that does nothing else.

    Several scenes, since how many passes a plan takes is luck: the mean of each one's median.
    """
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(_speed, engine, scenes, sensor_root, threads).result()


def _speed(
    engine: Path, scenes: Sequence[Path], sensor_root: Path, threads: int | None
) -> tuple[float, float]:
    planner = Planner.load(engine, threads=threads)
    mode: Mode = "fast" if planner.bundle.manifest.use_cot else "auto"
    medians = []
    for scene in scenes[:: max(len(scenes) // TIMED_SCENES, 1)][:TIMED_SCENES]:
        request = read_scene(scene, sensor_root)
        seconds: list[float] = []
        for _ in range(TIMED_REQUESTS + 1):
            start = perf_counter()
            planner.plan(request, mode=mode)
            seconds.append(perf_counter() - start)
        medians.append(1e3 * float(np.median(seconds[1:])))
    return float(np.mean(medians)), peak_memory() / 2**20


def _read(path: Path, identity: Record) -> dict[str, Measurement]:
    """Return what was measured before, by precision."""
    refusal = (
        f"{path}: expected measurements of this checkpoint, calibration, target, scenes, threads "
        "and machine, got others.\nRemove the folder to measure anew, or choose another --out."
    )
    return {
        line["precision"]: Measurement(**{**line, "figures": Figures(*line["figures"])})
        for line in kept_lines(path, identity, refusal)
    }
