"""A picture of a plan from above."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np

from autovla_rt.errors import DependencyError
from autovla_rt.kernels.contour import pose_to_corners
from autovla_rt.output_file import write_file
from autovla_rt.runtime.planner import Plan


def draw_plan(plan: Plan, png: Path) -> None:
    """Draw the ego's box at every pose of a plan, forward up, to a PNG.

    Raises:
        DependencyError: matplotlib is missing.
        StorageError: the picture cannot be written.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
        from matplotlib.patches import Polygon
    except ImportError as error:
        raise DependencyError(
            f"--plot needs matplotlib ({error}): pip install 'autovla-rt[plot]'"
        ) from error
    poses = np.vstack([np.zeros(3), np.array(plan.trajectory)])
    figure = Figure(figsize=(5, 8), layout="constrained")
    axes = figure.add_subplot()
    for index, corners in enumerate(pose_to_corners(poses)):
        color = "black" if index == 0 else "tab:blue"
        axes.add_patch(
            Polygon(corners[:, ::-1], fill=False, edgecolor=color, alpha=1 - 0.06 * index)
        )
    axes.plot(poses[:, 1], poses[:, 0], "o-", color="tab:orange", markersize=3)
    axes.set(
        title=f"{plan.mode}, p(slow) {'-' if plan.p_slow is None else f'{plan.p_slow:.2f}'}, "
        f"{plan.engine['name']}",
        xlabel="left (m)",
        ylabel="forward (m)",
        aspect="equal",
        adjustable="datalim",
    )
    axes.invert_xaxis()
    axes.grid(alpha=0.3)
    picture = io.BytesIO()
    FigureCanvasAgg(figure).print_png(picture)
    write_file(png, picture.getvalue())
