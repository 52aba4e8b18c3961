"""The curves of a reinforcement as a picture."""

from __future__ import annotations

import io
import json
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from autovla_rt.output_file import write_file

PANELS = (
    ("Reward", {"reward": "reward", "score": "driving score", "nearness": "nearness"}),
    ("Reasoning tokens", {"thinking_tokens": "mean of all answers"}),
    ("Slow answers", {"complex_slow": "complex", "straightforward_slow": "straightforward"}),
    ("KL to the supervised model", {"divergence": "nats an answer"}),
    (
        "Entropy of a choice, nats",
        {
            "decision_entropy": "decision",
            "reasoning_entropy": "reasoning",
            "action_entropy": "action",
        },
    ),
    ("Went wrong", {"collisions": "collisions", "off_road": "off the road"}),
)


def draw_curves(log: Path, picture: Path) -> None:
    """Draw the curves of a log as a PNG; without a line in the log nothing is drawn.

    Raises:
        StorageError: the file system refused.
    """
    if not log.exists():
        return
    lines = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    if not lines:
        return
    figure = Figure(figsize=(12, 6.4), layout="constrained")
    FigureCanvasAgg(figure)
    steps = [line["step"] for line in lines]
    for axes, (title, curves) in zip(figure.subplots(2, 3).flat, PANELS, strict=True):
        for name, label in curves.items():
            axes.plot(steps, [line[name] for line in lines], label=label)
        axes.set_title(title, loc="left", fontsize=10)
        axes.set_xlabel("step", fontsize=8)
        axes.tick_params(labelsize=8)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8, frameon=False)
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=110, format="png")
    write_file(picture, buffer.getvalue())
