"""One file per engine library behind two small protocols."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from autovla_rt.config import Camera

Float = NDArray[np.float32]

Grid = tuple[int, int]
"""(rows, columns) of a frame's patches."""

Pending = Callable[[], Float]
"""Waits for what is being computed, and returns it."""


class VisionEngine(Protocol):
    """The vision tower, compiled for one temporal patch of one camera and batched over them."""

    def encode(self, patches: Float, grid: Grid) -> Float:
        """Encode [B, rows*columns, patch_width] patches of one (rows, columns) grid.

        Returns:
            [B, rows*columns/merge², hidden] features in the processor's token order.
        """
        ...


@runtime_checkable
class FrameEngine(VisionEngine, Protocol):
    """A vision tower on a device that resizes frames itself, and works while the host goes on."""

    def start(self, frames: Sequence[NDArray[np.uint8]], camera: Camera) -> Pending:
        """Start encoding a camera's RGB frames [H, W, 3] of one size, pairs one after the other.

        Returns:
            What waits for the features [len(frames) / 2, rows*columns/merge², hidden]; to be called
            before the camera's next frames are started.
        """
        ...


class LanguageEngine(Protocol):
    """The language model with a KV cache of its own, one sequence long."""

    @property
    def capacity(self) -> int:
        """Positions that the KV cache holds."""
        ...

    @property
    def length(self) -> int:
        """Positions filled so far."""
        ...

    @property
    def prefix_length(self) -> int:
        """Positions at the front that were filled at load and are never forgotten."""
        ...

    @property
    def works_ahead(self) -> bool:
        """Whether a pass that returns no state returns before it is done."""
        ...

    def embed(self, token_ids: NDArray[np.int64]) -> Float:
        """Look up [k] token ids; returns [k, hidden]."""
        ...

    def extend(self, embeddings: Float, last: int | None = None) -> Float:
        """Append [k, hidden] embeddings in one forward pass; length grows by k.

        Args:
            embeddings: [k, hidden].
            last: How many states to return; None takes all k. Fewer cost less; 0 are for the keys
                and values alone.

        Returns:
            [last, hidden] hidden states after the final norm, those of the last embeddings.

        Raises:
            CapacityError: length + k > capacity (nothing was changed).
        """
        ...

    def truncate(self, length: int) -> None:
        """Forget all positions from `length` >= prefix_length on (rollback; no pass)."""
        ...

    def logits(self, hidden: Float) -> Float:
        """Full vocabulary head: [m, hidden] -> [m, vocab_size]."""
        ...

    def choice_logits(self, hidden: Float, token_ids: tuple[int, int]) -> Float:
        """Head of the two rows that decide between fast and slow: [m, hidden] -> [m, 2].

        Raises:
            BundleError: the engine has no head of these tokens.
        """
        ...

    def action_logits(self, hidden: Float) -> Float:
        """Head of the action rows only: [m, hidden] -> [m, num_actions], a slice of `logits`."""
        ...
