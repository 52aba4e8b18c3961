"""What every contestant of the race prints: a JSON line for each request, and one at the end."""

from __future__ import annotations

import argparse
import json
import resource
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Shape:
    """What a request looks like: request.json of the race's files.

    Attributes:
        prompt: Its tokens, visual ones included.
        answer: Tokens of its fast answer.
        vocabulary: Of the model.
        grid: Frames by two, rows and columns of patches of a camera.
    """

    prompt: int
    answer: int
    vocabulary: int
    grid: tuple[int, int, int]


def arguments(description: str | None) -> argparse.Namespace:
    """Read WORK, the threads and the number of requests; `shape` is the Shape that lies in WORK."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("work", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--requests", type=int, default=1)
    given = parser.parse_args()
    given.shape = Shape(**json.loads((given.work / "request.json").read_text()))
    return given


def timed(function: Callable[[], Any]) -> float:
    """Return the seconds that a call takes."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def say(**values: Any) -> None:
    """Print a line."""
    print(json.dumps(values), flush=True)


def say_end(load_s: float, **values: Any) -> None:
    """Print what is told once."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    say(load_s=load_s, peak_rss_gib=peak, **values)
