"""Scenes that a driver's own drives lead to, where the expert alone would not come."""

from __future__ import annotations

import numpy as np

from autovla_rt.demo.drive import Drive, DriveSettings, draw_drive_world
from autovla_rt.demo.drivers import Driver
from autovla_rt.demo.scenes import ATTEMPTS, LONGEST_WARM_UP, Scene, plan_scene, unsteady_hand

MOST_PLANS = 8
REPLAN_EVERY = 0.5
OFFSET = 1 << 40
"""Keeps the random numbers of these scenes apart from those of `record_scene`."""


def driven_scene(seed: int, driver: Driver) -> Scene:
    """Let the expert drive for a while, then `driver` for 0.5 to 4 s, and stop there.

    A model that is trained on its expert's states alone meets others in closed loop (Ross et al.
    2011); these are such states. One in which a collision has come, or the expert sees no plan
    without one, is drawn again.

    Raises:
        RuntimeError: that happened too often in a row.
    """
    for attempt in range(ATTEMPTS):
        rng = np.random.default_rng([OFFSET, seed, attempt])
        world = draw_drive_world(int(rng.integers(1 << 62)))
        warm_up = int(rng.integers(LONGEST_WARM_UP))
        world.advance(warm_up, noise=unsteady_hand(rng, warm_up))
        seconds = REPLAN_EVERY * int(rng.integers(1, MOST_PLANS + 1))
        drive = Drive(world, driver, DriveSettings(seconds, REPLAN_EVERY, latency_ms=0.0))
        for _ in drive:
            pass
        scene = plan_scene(seed, drive.moments)
        if scene is not None:
            return scene
    raise RuntimeError(f"No drive without a collision in {ATTEMPTS} attempts from seed {seed}.")
