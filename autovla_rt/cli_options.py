"""Options that several commands share."""

from __future__ import annotations

import enum
from pathlib import Path

DEFAULT_ENGINE = Path("engines/demo")


class Mode(enum.StrEnum):
    """Who decides between the fast and the slow answer."""

    auto = "auto"
    fast = "fast"
    slow = "slow"
