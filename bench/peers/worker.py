"""What every contestant of the race prints: a JSON line for each request, and one at the end."""

from __future__ import annotations

import argparse
import json
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

PROMPT, ANSWER = 1209, 45
VOCABULARY = 153713
"""Of the 3B model with AutoVLA's prompt with chain of thought and its fast answer."""


def arguments(description: str | None) -> argparse.Namespace:
    """Read WORK, the threads and the number of requests."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("work", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--requests", type=int, default=1)
    return parser.parse_args()


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
