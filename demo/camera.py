"""The three pinhole cameras, and what a pixel can show."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]
Ids = NDArray[np.int16]

FIELD_OF_VIEW = np.radians(70.0)
YAWS = {"front": 0.0, "front_left": np.radians(55.0), "front_right": np.radians(-55.0)}
CAMERA_AHEAD, CAMERA_HEIGHT, HORIZON = 0.6, 1.55, 0.45
"""Camera in front of and above the ego's middle (m); the horizon's place, 0 = top edge."""

# What a pixel shows: one of these, or AGENT_ID + the agent's index.
SKY_ID, GRASS_ID, ASPHALT_ID, PAINT_ID, SCENERY_ID, RED_ID, AMBER_ID, GREEN_ID = range(8)
AGENT_ID = 16


@dataclass(frozen=True)
class View:
    """What one camera sees at one moment.

    Attributes:
        pixels: uint8 [h, w, 3].
        ids: int16 [h, w], what each pixel shows (`SKY_ID` and so on, agents from `AGENT_ID`).
        depths: float32 [h, w], metres along the camera's axis; infinite in the sky.
    """

    pixels: Pixels
    ids: Ids
    depths: NDArray[np.float32]
