"""Who plans a drive: the compiled model, the expert, or constant velocity."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Protocol

import numpy as np

from autovla_rt.config import CAMERAS
from autovla_rt.demo.camera import View
from autovla_rt.demo.render import render
from autovla_rt.demo.road import Array
from autovla_rt.demo.scenes import NUM_POSES, expert_plan
from autovla_rt.demo.state import SPEED
from autovla_rt.demo.tracking import DT
from autovla_rt.demo.world import World
from autovla_rt.runtime.decoding_options import Mode
from autovla_rt.runtime.draft import Refinement
from autovla_rt.runtime.plan import Plan
from autovla_rt.runtime.planner import Planner
from autovla_rt.runtime.scene import Request
from autovla_rt.runtime.stream import NOT_MEASURED, Stream

FRAME_WIDTH, FRAME_HEIGHT = 392, 224
"""Size of the cameras' frames, pixels."""


@dataclass(frozen=True)
class Decision:
    """A plan for four moments of a drive.

    Attributes:
        trajectory: [10, 3] in the ego frame of the last moment.
        milliseconds: How long planning took (preprocessing to trajectory, not the drawing).
        plan: What the model answered; None where no model planned.
        views: What the cameras saw at the last moment; None where nobody looked.
    """

    trajectory: Array
    milliseconds: float
    plan: Plan | None = None
    views: dict[str, View] | None = None


class Driver(Protocol):
    """Plans from the last four moments, 0.5 s apart, the last one now."""

    def decide(self, moments: Sequence[World]) -> Decision:
        """Return the plan."""
        ...


class ModelDriver:
    """The compiled engine: it sees what the cameras see, and the request's numbers.

    A driver drives one world, once; its plans are a stream.
    """

    def __init__(
        self,
        planner: Planner,
        *,
        mode: Mode = "auto",
        refinement: Refinement | None = None,
        pass_ms: Mapping[int, float] = NOT_MEASURED,
    ) -> None:
        self._stream = Stream(planner, pass_ms=pass_ms)
        self._mode: Mode = mode
        self._refinement = refinement
        self._cameras = WorldCameras()

    def decide(self, moments: Sequence[World]) -> Decision:
        """Draw the frames, plan, and measure the planning."""
        drawn, now = self._cameras.look(moments), moments[-1]
        request = request_of(now, drawn)
        start = perf_counter()
        plan = self._stream.plan(
            request, time=now.time, mode=self._mode, refinement=self._refinement
        )
        elapsed = (perf_counter() - start) * 1e3
        return Decision(np.array(plan.trajectory), elapsed, plan, drawn[-1])


class WorldCameras:
    """Takes the frames of moments; those of the last ones are not taken again."""

    def __init__(self) -> None:
        self._seen: list[tuple[World, dict[str, View]]] = []

    def look(self, moments: Sequence[World]) -> list[dict[str, View]]:
        """Return what each camera sees at each moment."""
        drawn = [self._frames(world) for world in moments]
        self._seen = list(zip(moments, drawn, strict=True))
        return drawn

    def _frames(self, world: World) -> dict[str, View]:
        for moment, views in self._seen:
            if moment is world:
                return views
        return render(world, FRAME_WIDTH, FRAME_HEIGHT)


class ExpertDriver:
    """The expert, who knows the world's state; its plans are followed by the same controller."""

    def decide(self, moments: Sequence[World]) -> Decision:
        """Return the expert's plan for the world as it is now."""
        return Decision(expert_plan(moments[-1]), 0.0)


class ConstantVelocityDriver:
    """Straight on at the present speed, whatever comes."""

    def decide(self, moments: Sequence[World]) -> Decision:
        """Return ten poses straight ahead."""
        return Decision(constant_velocity(moments[-1]), 0.0)


def constant_velocity(world: World) -> Array:
    """Return the trajectory [10, 3] of a car that keeps speed and heading."""
    ahead = world.ego[SPEED] * DT * np.arange(1, NUM_POSES + 1)
    return np.column_stack([ahead, np.zeros(NUM_POSES), np.zeros(NUM_POSES)])


def request_of(now: World, drawn: Sequence[dict[str, View]], *, blind: bool = False) -> Request:
    """Return the request that a car would make: frames, speed, acceleration, instruction.

    A blind one has black frames in their place.
    """
    frames = {camera: [views[camera].pixels * (not blind) for views in drawn] for camera in CAMERAS}
    return Request(frames, float(now.ego[SPEED]), now.acceleration, now.instruction)
