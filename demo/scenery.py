"""Houses and trees along the roads."""

from __future__ import annotations

import numpy as np

from autovla_rt.demo import road
from autovla_rt.demo.road import Array, Layout

HOUSE, TREE = 0, 1


def draw_scenery(layout: Layout, look: int) -> Array:
    """Return houses and trees along the roads, clear of asphalt and pavement."""
    rng = np.random.default_rng(look)
    rows = []
    lines = [layout.main, layout.cross] if layout.has_junction else [layout.main]
    for line, half in zip(lines, layout.numbers[:2], strict=False):
        for along in np.arange(10.0, len(line) * road.STEP - 10, 13.0):
            for side in (-1.0, 1.0):
                if rng.random() < 0.35:
                    continue
                tree = rng.random() < 0.45
                depth = float(rng.uniform(5.5, 9.0)) if tree else float(rng.uniform(12, 20))
                x, y, heading = road.place(
                    line, along + float(rng.uniform(-3, 3)), side * (half + depth)
                )
                size = (3.0, 3.0, 5.0) if tree else (rng.uniform(8, 12), 9.0, rng.uniform(5, 13))
                rows.append((x, y, heading, *size, TREE if tree else HOUSE, rng.random()))
    scenery = np.array(rows)
    clear = np.ones(len(scenery), dtype=bool)
    for line, half in zip(lines, layout.numbers[:2], strict=False):
        samples = line[::4, :2]
        distance = np.hypot(*(scenery[:, None, :2] - samples[None]).transpose(2, 0, 1)).min(axis=1)
        clear &= distance > half + np.where(scenery[:, 6] == TREE, 5.0, 10.0)
    kept: Array = scenery[clear]
    return kept
