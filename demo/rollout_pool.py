"""Processes that sample groups side by side, each with an engine of its own."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Self

from autovla_rt.demo.driven_scenes import driven_scene
from autovla_rt.demo.drivers import ModelDriver
from autovla_rt.demo.rollouts import Group, sample_group
from autovla_rt.demo.scenes import record_scene
from autovla_rt.runtime.planner import Planner


@dataclass(frozen=True)
class SceneOrder:
    """A scene to sample for; `driven` is one that the engine's own driving leads to."""

    seed: int
    driven: bool


class RolloutPool:
    """Samples with `processes` engines of one thread each; use it as a context.

    The processes ignore SIGINT and SIGTERM, so that a step in progress is finished, and end with
    the process that made them, even if that is killed.
    """

    def __init__(self, processes: int, group_size: int, temperature: float) -> None:
        self._work = partial(_sample, group_size, temperature)
        self._pool = ProcessPoolExecutor(
            processes, mp_context=multiprocessing.get_context("spawn"), initializer=_begin
        )

    def __enter__(self) -> Self:
        """Start nothing yet: processes start with the first scene."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End the processes."""
        self._pool.shutdown(cancel_futures=True)

    def sample(self, bundle: Path, step: int, orders: Sequence[SceneOrder]) -> list[Group]:
        """Sample a group for each scene with the bundle as it is in this step.

        Equal bundles and scenes give equal groups, whatever the number of processes.
        """
        return list(self._pool.map(partial(self._work, bundle, step), orders))


_engine: tuple[tuple[Path, int], Planner] | None = None


def _sample(
    group_size: int, temperature: float, bundle: Path, step: int, order: SceneOrder
) -> Group:
    """Sample in a process of the pool, which loads the engine anew in every step."""
    global _engine
    if _engine is None or _engine[0] != (bundle, step):
        _engine = (bundle, step), Planner.load(bundle, threads=1)
    planner = _engine[1]
    if order.driven:
        scene = driven_scene(order.seed, ModelDriver(planner))
    else:
        scene = record_scene(order.seed)
    return sample_group(planner, scene, group_size, temperature)


def _begin() -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
