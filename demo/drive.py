"""The closed loop: a world, a driver who plans again and again, and a controller that follows."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from autovla_rt.config import FRAMES_PER_CAMERA
from autovla_rt.demo import state
from autovla_rt.demo.drivers import Decision, Driver
from autovla_rt.demo.scenario import draw_world
from autovla_rt.demo.scenes import STEPS_PER_POSE
from autovla_rt.demo.score import Score, Scorer
from autovla_rt.demo.state import DT, SPEED
from autovla_rt.demo.tracking import PlannedPath
from autovla_rt.demo.world import World

HISTORY = (FRAMES_PER_CAMERA - 1) * STEPS_PER_POSE
EVENTS_PER_DRIVE = 3
EPSILON = 1e-6


@dataclass(frozen=True)
class DriveSettings:
    """How to drive.

    Attributes:
        seconds: Length of the drive, without the 1.5 s in which the expert fills the frames.
        replan_every: Seconds between two plans, a multiple of 0.1.
        latency_ms: A plan takes effect so long after its frames were taken; None takes what
            planning really took on this machine.
    """

    seconds: float = 20.0
    replan_every: float = 0.5
    latency_ms: float | None = None


@dataclass(frozen=True)
class Tick:
    """One replanning.

    Attributes:
        time: Seconds since the drive began.
        world: The world when the frames were taken.
        decision: What was planned.
        latency_ms: After how long it took effect.
    """

    time: float
    world: World
    decision: Decision
    latency_ms: float

    def as_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        plan = self.decision.plan
        return {
            "time": round(self.time, 1),
            "pose": self.world.ego[:3].tolist(),
            "speed": float(self.world.ego[SPEED]),
            "instruction": self.world.instruction,
            "trajectory": self.decision.trajectory.tolist(),
            "planning_ms": self.decision.milliseconds,
            "latency_ms": self.latency_ms,
            "mode": None if plan is None else plan.mode,
            "p_slow": None if plan is None else plan.p_slow,
            "reasoning": None if plan is None else plan.reasoning,
        }


class Drive:
    """One drive. Iterate for its ticks; afterwards `score` says how it went.

    Memory does not grow with the drive: 1.5 s of worlds are kept.
    """

    def __init__(self, world: World, driver: Driver, settings: DriveSettings) -> None:
        self._driver = driver
        self._settings = settings
        self._world = world
        self._moments: deque[World] = deque(maxlen=HISTORY + 1)
        self._moments.append(world.copy())
        for _ in range(HISTORY):
            world.advance(1)
            self._moments.append(world.copy())
        self._reference = world.copy()
        self._scorer = Scorer(world)

    def __iter__(self) -> Iterator[Tick]:
        """Drive to the end, or to the first collision at fault.

        One plan is made at a time: a tick that comes while one is still being made is left out. The
        expert drives until the first plan takes effect.
        """
        steps_per_plan = round(self._settings.replan_every / DT)
        pending: tuple[float, PlannedPath] | None = None
        path: PlannedPath | None = None
        start = self._world.time
        for step in range(round(self._settings.seconds / DT)):
            now = self._world.time
            if pending is None and step % steps_per_plan == 0:
                decision = self._driver.decide(self.moments)
                latency = self._latency(decision)
                planned = PlannedPath(self._world.ego[:3].copy(), decision.trajectory, now)
                pending = now + latency / 1e3, planned
                yield Tick(now - start, self._world.copy(), decision, latency)
            if pending is not None and pending[0] <= now + EPSILON:
                path, pending = pending[1], None
            self._step(path)
            if self._scorer.collided_with is not None:
                return

    @property
    def moments(self) -> tuple[World, ...]:
        """The world at the last four frames, 0.5 s apart, the last one now."""
        return tuple(self._moments)[::STEPS_PER_POSE]

    def score(self) -> Score:
        """Return the score so far; the expert drives the same world for the same time."""
        reference = self._reference.copy()
        before = float(reference.ego[state.ALONG])
        reference.advance(round(self._settings.seconds / DT))
        return self._scorer.result(float(reference.ego[state.ALONG]) - before)

    def _latency(self, decision: Decision) -> float:
        fixed = self._settings.latency_ms
        return decision.milliseconds if fixed is None else fixed

    def _step(self, path: PlannedPath | None) -> None:
        """Move the world by one step of 0.1 s, along a plan or with the expert."""
        world = self._world
        if path is None:
            world.advance(1)
        else:
            world.step(*path.control(world.ego, world.time))
        self._moments.append(world.copy())
        self._scorer.observe(world)


def draw_drive_world(seed: int) -> World:
    """Draw a world with several events in a row for a drive."""
    return draw_world(seed, events=EVENTS_PER_DRIVE)
