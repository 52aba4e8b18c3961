"""What a world looks like: sun, sky, colours and noise, by its seed."""

from __future__ import annotations

import numpy as np

from autovla_rt.demo.road import Array
from autovla_rt.demo.world import World

# What the world looks like [14]: sun's direction, its share of the light, sky, grass, asphalt,
# gain, noise.
(SUN_X, SUN_Y, SUN_Z, SUN_SHARE, SKY_R, SKY_G, SKY_B, HAZE_R, HAZE_G, HAZE_B) = range(10)
GRASS_G, ASPHALT, GAIN, NOISE = 10, 11, 12, 13


def look_of(world: World) -> Array:
    """Return the numbers that the seed of a world's look stands for."""
    rng = np.random.default_rng(world.look)
    azimuth, height = rng.uniform(0, 2 * np.pi), rng.uniform(0.35, 1.2)
    overcast = rng.uniform(0, 1)
    grey = np.array([150, 160, 172])
    sky = (1 - overcast) * np.array([84, 140, 208]) + overcast * grey
    haze = (1 - overcast) * np.array([200, 218, 232]) + overcast * np.array([188, 194, 200])
    return np.array(
        [
            np.cos(azimuth) * np.cos(height),
            np.sin(azimuth) * np.cos(height),
            np.sin(height),
            0.5 * (1 - 0.75 * overcast),
            *sky,
            *haze,
            rng.uniform(0.8, 1.2),
            rng.uniform(72, 104),
            rng.uniform(0.72, 1.18),
            rng.uniform(1.5, 5.0),
        ]
    )
