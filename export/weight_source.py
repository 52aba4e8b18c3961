"""What a dialect sees of a checkpoint: float32 matrices by name, any rows of them at a time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from autovla_rt.errors import CheckpointError
from autovla_rt.export.progress import NoProgress, Progress

CHUNK_ELEMENTS = 4 << 20
"""Elements converted at a time: 16 MiB of float32."""

HEAD = "lm_head"
"""Module name of the whole head, also where it is tied to the embedding."""

TEXT_HEAD = "text_head"
"""Module name of the head's rows before the first action token."""


class WeightSource(Protocol):
    """Read access that never needs a whole matrix in memory."""

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor."""
        ...

    def rows(self, name: str, start: int, stop: int) -> NDArray[np.float32]:
        """Rows [start, stop) of axis 0 as float32."""
        ...


class TensorReader(Protocol):
    """The part of an opened checkpoint that a source reads from."""

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor."""
        ...

    def read_rows(self, name: str, start: int, stop: int) -> NDArray[np.generic]:
        """Rows [start, stop) of axis 0 in the stored type."""
        ...


class ModelWeights:
    """A checkpoint as a WeightSource, with the tied head and the text head resolved."""

    def __init__(
        self,
        reader: TensorReader,
        *,
        tied: bool,
        action_start_id: int,
        progress: Progress | None = None,
    ) -> None:
        self._reader = reader
        self._progress = progress or NoProgress()
        head = "model.embed_tokens.weight" if tied else f"{HEAD}.weight"
        self._aliases = {f"{HEAD}.weight": head, f"{TEXT_HEAD}.weight": head}
        self._action_start_id = action_start_id

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor; the text head ends at the first action row."""
        shape = self._reader.shape(self._aliases.get(name, name))
        return (self._action_start_id, *shape[1:]) if name == f"{TEXT_HEAD}.weight" else shape

    def rows(self, name: str, start: int, stop: int) -> NDArray[np.float32]:
        """Rows [start, stop) of axis 0 as float32.

        Raises:
            CheckpointError: a value is NaN or infinite; quantized, it would spoil its whole block.
        """
        stored = self._aliases.get(name, name)
        rows = self._reader.read_rows(stored, start, stop).astype(np.float32, copy=False)
        if not np.isfinite(rows).all():
            raise CheckpointError(
                f"{stored}: expected finite weights, got NaN or infinity in rows {start} to {stop}."
                " The training run diverged or the file is damaged: use another checkpoint."
            )
        self._progress.advance(rows.size)
        return rows


def matrix_shape(source: WeightSource, modules: tuple[str, ...]) -> tuple[int, int]:
    """[N, K] of several modules' weights stacked; a convolution's kernel counts as its inputs."""
    shapes = [source.shape(f"{module}.weight") for module in modules]
    widths = {int(np.prod(shape[1:])) for shape in shapes}
    if len(widths) != 1:
        raise ValueError(f"{modules}: cannot stack weights of shapes {shapes}")
    return sum(shape[0] for shape in shapes), widths.pop()


def matrix_chunks(source: WeightSource, modules: tuple[str, ...]) -> Iterator[NDArray[np.float32]]:
    """Yield consecutive [n, K] float32 chunks of several modules' stacked weights.

    Only a module's last chunk has an odd number of rows: some formats pack two rows into one.
    """
    for module in modules:
        name = f"{module}.weight"
        shape = source.shape(name)
        width = int(np.prod(shape[1:]))
        step = max(2, CHUNK_ELEMENTS // width // 2 * 2)
        for start in range(0, shape[0], step):
            stop = min(shape[0], start + step)
            yield source.rows(name, start, stop).reshape(stop - start, width)
