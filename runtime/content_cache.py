"""What was computed of content that was seen before, bounded."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from typing import Generic, TypeVar

from autovla_rt.errors import InputError

Value = TypeVar("Value")


class ContentCache(Generic[Value]):
    """Values by key; the one not used for longest goes first.

    Args:
        size: Most values to keep; 0 keeps none.

    Attributes:
        hits, misses: How often a value was there, and was not.
    """

    def __init__(self, size: int) -> None:
        if size < 0:
            raise InputError(f"cache: expected a size of 0 (none) or more, got {size}.")
        self._size = size
        self._values: OrderedDict[Hashable, Value] = OrderedDict()
        self.hits = self.misses = 0

    def __len__(self) -> int:
        """Values that are kept now."""
        return len(self._values)

    def get(self, key: Hashable) -> Value | None:
        """Return a value, None if it is not there."""
        if key not in self._values:
            self.misses += 1
            return None
        self.hits += 1
        self._values.move_to_end(key)
        return self._values[key]

    def put(self, key: Hashable, value: Value) -> None:
        """Keep a value, which nobody may change from now on."""
        self._values[key] = value
        self._values.move_to_end(key)
        while len(self._values) > self._size:
            self._values.popitem(last=False)
