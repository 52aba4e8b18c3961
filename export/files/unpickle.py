"""A pickle reader that executes nothing: only named constructors, everything else is refused."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from typing import IO, Any

from autovla_rt.errors import AutovlaError


class RestrictedUnpickler(pickle.Unpickler):
    """Unpickle with a whitelist of globals.

    `allowed` maps (module, name), as written in the pickle, to the object that takes its place.
    Any other global raises `error` before anything is called.
    """

    def __init__(
        self,
        file: IO[bytes],
        allowed: Mapping[tuple[str, str], Any],
        source: str,
        error: type[AutovlaError],
    ) -> None:
        super().__init__(file)
        self._allowed = allowed
        self._source = source
        self._error = error

    def find_class(self, module: str, name: str) -> Any:
        """Return the replacement of a whitelisted global, refuse all others."""
        try:
            return self._allowed[module, name]
        except KeyError:
            raise self._error(
                f"{self._source}: the pickle asks for {module}.{name}, which could run code.\n"
                "Expected only arrays, tensors and plain data. Nothing was executed.\n"
                "Do not use this file unless you know who wrote it."
            ) from None
