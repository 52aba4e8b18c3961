"""Requests of drives through the miniature's world, the expert driving."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from autovla_rt.demo.drive import Drive, DriveSettings, draw_drive_world
from autovla_rt.demo.drivers import Decision, ExpertDriver, WorldCameras, request_of
from autovla_rt.demo.world import World
from autovla_rt.runtime.scene import Request

TICK = 0.5


class _Recording:
    """The expert drives; what a model would be asked is kept."""

    def __init__(self) -> None:
        self._expert, self._cameras = ExpertDriver(), WorldCameras()
        self.asked: list[Request] = []

    def decide(self, moments: Sequence[World]) -> Decision:
        """Return the expert's plan."""
        self.asked = [request_of(moments[-1], self._cameras.look(moments))]
        return self._expert.decide(moments)


def drive_requests(seed: int) -> Iterator[Request]:
    """Yield the requests of one drive of 20 s, `TICK` apart."""
    recording = _Recording()
    for _ in Drive(draw_drive_world(seed), recording, DriveSettings(latency_ms=0.0)):
        yield from recording.asked
