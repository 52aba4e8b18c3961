"""What the auxiliary head learns to see: per visual token, what its pixels show.

It gives the vision tower a dense signal from the first step on, where the plan's gradient is weak;
the head is dropped when the checkpoint is written.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from autovla_rt.demo.camera import AGENT_ID, AMBER_ID, ASPHALT_ID, GREEN_ID, PAINT_ID, RED_ID, Ids
from autovla_rt.demo.jit import kernel
from autovla_rt.demo.road import Array
from autovla_rt.demo.state import (
    A_ACCELERATION,
    A_HEADING,
    A_SPEED,
    CONE,
    HEADING,
    KIND,
    PEDESTRIAN,
)

Float = NDArray[np.float32]

PATCH = 14
(ROAD, PAINT, VEHICLE, WALKER, CONES, RED_LAMP, AMBER_LAMP, GREEN_LAMP, NEARNESS, SPEED) = range(10)
FACING, BRAKING = 10, 11
CHANNELS = 12
WIDTH = 4 * CHANNELS
"""Values of one visual token: its four patches (row by row), each with all channels."""


@kernel
def describe(
    ids: Ids, depths: Float, agents: Array, ego: Array, out: Float, weights: Float
) -> None:
    """Fill targets and weights [tokens, WIDTH] of one view, tokens row by row; values in 0..1."""
    rows, columns = ids.shape[0] // (2 * PATCH), ids.shape[1] // (2 * PATCH)
    for token in range(rows * columns):
        for part in range(4):
            row = (token // columns * 2 + part // 2) * PATCH
            column = (token % columns * 2 + part % 2) * PATCH
            patch = ids[row : row + PATCH, column : column + PATCH]
            depth = depths[row : row + PATCH, column : column + PATCH]
            first = part * CHANNELS
            describe_patch(
                patch, depth, agents, ego, out[token, first : first + CHANNELS],
                weights[token, first : first + CHANNELS],
            )  # fmt: skip


@kernel
def describe_patch(
    ids: Ids, depths: Float, agents: Array, ego: Array, out: Float, weights: Float
) -> None:
    """Fill the channels of one patch: shares of what it shows, and the nearest agent's state."""
    counts = np.zeros(8)
    nearest, who = np.inf, -1
    for row in range(PATCH):
        for column in range(PATCH):
            shown = ids[row, column]
            if shown >= AGENT_ID:
                kind = int(agents[shown - AGENT_ID, KIND])
                counts[WALKER if kind == PEDESTRIAN else CONES if kind >= CONE else VEHICLE] += 1
                if depths[row, column] < nearest:
                    nearest, who = depths[row, column], shown - AGENT_ID
            elif shown == RED_ID:
                counts[RED_LAMP] += 8
            elif shown == AMBER_ID:
                counts[AMBER_LAMP] += 8
            elif shown == GREEN_ID:
                counts[GREEN_LAMP] += 8
            elif shown == PAINT_ID:
                counts[PAINT] += 1
                counts[ROAD] += 1
            elif shown == ASPHALT_ID:
                counts[ROAD] += 1
    for channel in range(8):
        boost = 1.0 if channel < VEHICLE else 4.0
        out[channel] = min(1.0, boost * counts[channel] / (PATCH * PATCH))
        weights[channel] = 1.0
    if who < 0:
        return
    agent = agents[who]
    out[NEARNESS] = 6.0 / (6.0 + nearest)
    out[SPEED] = min(1.0, agent[A_SPEED] / 14.0)
    out[FACING] = 0.5 + 0.5 * np.cos(agent[A_HEADING] - ego[HEADING])
    out[BRAKING] = 1.0 if agent[A_ACCELERATION] < -0.6 else 0.0
    for channel in range(NEARNESS, CHANNELS):
        weights[channel] = 1.0
