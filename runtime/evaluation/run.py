"""An evaluation over a folder of scenes: a line for each, and what they say together.

Lines are written as scenes are done, so a run that was stopped goes on, and nothing grows with the
number of scenes but their lines. Scenes are shared out among processes, here or on a Ray cluster
whose machines see the same paths; each process opens its own engines.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from multiprocessing import get_context, parent_process
from multiprocessing.connection import wait
from pathlib import Path
from threading import Thread, current_thread, main_thread
from typing import Any

from autovla_rt.bundle import load_bundle
from autovla_rt.errors import InputError, LayoutError
from autovla_rt.output_file import make_folder, write_file
from autovla_rt.runtime.device import describe_device
from autovla_rt.runtime.evaluation.observation import observe
from autovla_rt.runtime.evaluation.scene_record import scene_record
from autovla_rt.runtime.plan import describe_engine
from autovla_rt.runtime.planner import Planner
from autovla_rt.runtime.scene import read_scene

Record = dict[str, Any]

LINES = "scenes.jsonl"
SPREAD = 4
"""Scenes in flight for each process of a cluster."""


@dataclass(frozen=True)
class Evaluation:
    """What is evaluated, and how.

    Attributes:
        engine: Folder of its bundle.
        against: Folder of the reference's; None compares with the truth alone.
        sensor_root: Root of the scenes' paths.
        threads: Of each engine.
        thinking_token_budget: Most tokens of reasoning.
    """

    engine: Path
    against: Path | None
    sensor_root: Path
    threads: int | None = None
    thinking_token_budget: int = 512

    def identity(self) -> Record:
        """Return what a line depends on, besides the scene.

        Raises:
            BundleError: a bundle is missing or damaged.
            LayoutError: both engines do not answer the same requests.
        """
        bundles = [load_bundle(folder) for folder in (self.engine, self.against) if folder]
        manifests = [bundle.manifest for bundle in bundles]
        for manifest in manifests[1:]:
            for fact in ("actions", "cameras", "use_cot"):
                mine, theirs = (getattr(of, fact) for of in (manifests[0], manifest))
                if mine != theirs:
                    raise LayoutError(
                        f"{self.against}: expected an engine with the same {fact} as "
                        f"{self.engine} ({mine}), got {theirs}.\nCompare engines of one "
                        "checkpoint, built with the same --frame-size."
                    )
        return {
            "engine": bundles[0].identity,
            "against": bundles[1].identity if self.against else None,
            "thinking_token_budget": self.thinking_token_budget,
        }


def protocol_of(evaluation: Evaluation) -> Record:
    """Return what a report must say of how its figures came about."""
    engines = {"engine": evaluation.engine, "against": evaluation.against}
    bundles = {part: load_bundle(folder) for part, folder in engines.items() if folder is not None}
    engines_told = {}
    for part, bundle in bundles.items():
        used = bundle.manifest.calibration
        engines_told[part] = {
            **describe_engine(bundle.manifest, bundle.identity),
            "calibration": None if used is None else used.model_dump(),
        }
    return {
        **engines_told,
        "decoding": "greedy, mode auto",
        "thinking_token_budget": evaluation.thinking_token_budget,
        "device": describe_device(),
    }


def scene_files(folder: Path) -> list[Path]:
    """Return a folder's scenes in the order of their names.

    Raises:
        InputError: there are none.
    """
    files = sorted(folder.glob("*.json"))
    if not files:
        raise InputError(
            f"{folder}: expected scene files (*.json), got none.\nGive the folder of AutoVLA's "
            "preprocessed scenes."
        )
    return files


def evaluate(
    evaluation: Evaluation,
    scenes: Sequence[Path],
    out: Path,
    *,
    processes: int = 1,
    ray: str | None = None,
) -> Iterator[Record]:
    """Yield every scene's line, those that `out`/scenes.jsonl has already among them.

    Args:
        evaluation: What is done with each.
        scenes: Their files.
        out: Folder of the lines.
        processes: Of this machine; 1 is this one.
        ray: Address of a Ray cluster ("auto", "host:port", "local") that is used instead.

    Raises:
        InputError: `out` has lines of other engines, or a scene is unusable.
        StorageError: the file system refused.
    """
    make_folder(out)
    path, identity = out / LINES, evaluation.identity()
    done = _lines(path, identity)
    yield from (done[scene.stem] for scene in scenes if scene.stem in done)
    missing = [scene for scene in scenes if scene.stem not in done]
    with path.open("a", encoding="utf-8") as file:
        for record in _spread(evaluation, missing, processes, ray):
            file.write(json.dumps(record) + "\n")
            file.flush()
            yield record


def evaluate_scene(evaluation: Evaluation, scene: Path) -> Record:
    """Return one scene's line; the engines stay open in this process."""
    request = read_scene(scene, evaluation.sensor_root)
    budget = evaluation.thinking_token_budget
    engine = _opened(evaluation.engine, evaluation.threads)
    reference = None
    if evaluation.against is not None:
        planner = _opened(evaluation.against, evaluation.threads)
        reference = observe(planner, request, None, thinking_token_budget=budget)
    given = None if reference is None else reference.decoded
    seen = observe(engine, request, given, thinking_token_budget=budget)
    dt = engine.bundle.manifest.actions.dt
    return scene_record(scene.stem, request.expert, dt, seen, reference)


@lru_cache(2)
def _opened(folder: Path, threads: int | None) -> Planner:
    return Planner.load(folder, threads=threads)


def close_engines() -> None:
    """Let go of the engines that this process holds."""
    _opened.cache_clear()


def _lines(path: Path, identity: Record) -> dict[str, Record]:
    """Return the lines that are there, by scene."""
    refusal = (
        f"{path}: expected lines of these engines and options, got others.\n"
        "Choose another --out, or give the engines that they are of."
    )
    return {line["token"]: line for line in kept_lines(path, identity, refusal)}


def kept_lines(path: Path, identity: Record, refusal: str) -> list[Record]:
    """Return a file's lines behind the first; a new file begins with what they depend on.

    Raises:
        InputError: they depend on something else; the message is `refusal`.
        StorageError: the file system refused.
    """
    if not path.exists():
        write_file(path, (json.dumps(identity) + "\n").encode())
        return []
    found: list[Record] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            found.append(json.loads(line))
        except ValueError:  # the last one of a run that was killed
            break
    if not found or found[0] != json.loads(json.dumps(identity)):
        raise InputError(refusal)
    write_file(path, "".join(json.dumps(line) + "\n" for line in found).encode())
    return found[1:]


def _spread(
    evaluation: Evaluation, scenes: Sequence[Path], processes: int, ray: str | None
) -> Iterator[Record]:
    if ray is not None:
        yield from _on_ray(evaluation, scenes, ray)
    elif processes == 1:
        yield from (evaluate_scene(evaluation, scene) for scene in scenes)
    else:
        context = get_context("spawn")
        with ProcessPoolExecutor(processes, context, initializer=_end_with_parent) as pool:
            yield from pool.map(evaluate_scene, [evaluation] * len(scenes), scenes)


def _end_with_parent() -> None:
    """End this process when the one that started it is gone, however it ended.

    A pool's workers wait for work for ever where nobody is left to send it.
    """
    parent = parent_process()
    assert parent is not None
    sentinel = parent.sentinel

    def watch() -> None:
        wait([sentinel])
        os._exit(1)

    Thread(target=watch, daemon=True).start()


def _on_ray(evaluation: Evaluation, scenes: Iterable[Path], address: str) -> Iterator[Record]:
    """Share scenes out among a cluster's CPUs, a few at a time, in whatever order they end."""
    import ray

    ended_by = signal.getsignal(signal.SIGTERM)  # Ray puts its own handler there, and leaves it
    ray.init(address=None if address == "local" else address, log_to_driver=False)
    try:
        cores = evaluation.threads or 1
        work = ray.remote(num_cpus=cores)(evaluate_scene)
        most = SPREAD * max(int(ray.cluster_resources().get("CPU", 1)) // cores, 1)
        running: list[Any] = []
        for scene in scenes:
            running.append(work.remote(evaluation, scene))
            if len(running) >= most:
                (ended,), running = ray.wait(running)
                yield ray.get(ended)
        while running:
            (ended,), running = ray.wait(running)
            yield ray.get(ended)
    finally:
        ray.shutdown()
        if current_thread() is main_thread():
            signal.signal(signal.SIGTERM, ended_by)
