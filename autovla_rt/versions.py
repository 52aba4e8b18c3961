"""Version numbers as (major, minor): what is compared of TensorRT's and of CUDA's."""

from __future__ import annotations

import re

Version = tuple[int, int]
"""(major, minor)."""

VERSION = re.compile(r"([0-9]{1,3})\.([0-9]{1,3})(?:\..*)?", re.ASCII)


def read_version(text: str) -> Version:
    """Return the beginning of a version such as 10.3.0.

    Raises:
        ValueError: it does not begin so.
    """
    match = VERSION.fullmatch(text)
    if match is None:
        raise ValueError(f"expected a version such as 10.3, got {text[:40]}")
    return int(match[1]), int(match[2])


def dotted(version: Version) -> str:
    """Return it as text."""
    return ".".join(map(str, version))
