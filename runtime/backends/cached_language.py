"""What every language engine of this machine does alike: positions, embeddings and small heads."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file
from threadpoolctl import threadpool_limits

from autovla_rt.bundle import Bundle
from autovla_rt.errors import BundleError, CapacityError
from autovla_rt.kernels.action_head import action_logits
from autovla_rt.prefix import PREFIX_FILE, Prefix, read_prefix
from autovla_rt.runtime.backends import Float, Pending


def keep_blas_to_one_thread() -> None:
    """Let NumPy compute with one thread from now on, in the whole process.

    The engine's threads and those of NumPy's BLAS (the action head's) wait for work by spinning,
    each on the cores of the other: two processes of one thread each planned four times as fast
    with this, one process of two threads 1.7 times.
    """
    threadpool_limits(1, user_api="blas")


def prefix_of(bundle: Bundle, use_prefix: bool) -> Prefix | None:
    """Return a bundle's prefix, if it has one and it is to be used."""
    return read_prefix(bundle) if use_prefix and PREFIX_FILE in bundle.manifest.files else None


class CachedLanguage(ABC):
    """A language engine on the CPU; a backend adds how a pass and the text head are computed.

    Args:
        bundle: The engine.
        prefix: What the backend fills its cache with; None starts empty.
    """

    def __init__(self, bundle: Bundle, prefix: Prefix | None) -> None:
        keep_blas_to_one_thread()
        self._capacity = bundle.manifest.kv_capacity
        self._embeddings = np.asarray(np.load(bundle.path("embeddings.npy"), mmap_mode="r"))
        self._action_weight = load_file(bundle.path("action_head.safetensors"))["weight"]
        choice = load_file(bundle.path("choice_head.safetensors"))
        self._choice_weight, self._choice_ids = choice["weight"], tuple(choice["ids"].tolist())
        self._tables = load_file(bundle.path("rotary.safetensors"))
        self._prefix_length = self._length = 0 if prefix is None else prefix.length

    @property
    def capacity(self) -> int:
        """Positions that the KV cache holds."""
        return self._capacity

    @property
    def length(self) -> int:
        """Positions filled so far."""
        return self._length

    @property
    def prefix_length(self) -> int:
        """Positions that were filled when the engine was loaded, and stay."""
        return self._prefix_length

    @property
    def works_ahead(self) -> bool:
        """Whether a pass that returns no state returns before it is done."""
        return False

    def embed(self, token_ids: NDArray[np.int64]) -> Float:
        """Look up [k] token ids; only their rows are read from the mapped table."""
        rows: Float = self._embeddings[token_ids].astype(np.float32)
        return rows

    def extend(self, embeddings: Float, last: int | None = None) -> Float:
        """Append [k, hidden] embeddings in one pass; returns the `last` ones' final states."""
        count = embeddings.shape[0]
        wanted = count if last is None else last
        rows = np.arange(count - max(wanted, 1), count)
        total = self._length + count
        if total > self._capacity:
            raise CapacityError(
                f"the sequence needs {total} positions, the engine's KV cache holds "
                f"{self._capacity}. Build with a larger --kv-capacity."
            )
        padded = np.ascontiguousarray(self._padded(embeddings), np.float32)
        states = self._pass(padded, self._padded(rows))
        self._length = total
        return states()[:wanted] if wanted else np.zeros((0, embeddings.shape[1]), np.float32)

    def truncate(self, length: int) -> None:
        """Forget all positions from `length` on."""
        if not self._prefix_length <= length <= self._length:
            raise ValueError(
                f"cannot truncate {self._length} positions, {self._prefix_length} of them the "
                f"prompt's constant prefix, to {length}"
            )
        self._length = length

    def logits(self, hidden: Float) -> Float:
        """Full vocabulary: the text head's rows, then the action head's."""
        text = self._text_logits(self._padded(hidden))[: len(hidden)]
        return np.concatenate([text, self.action_logits(hidden)], axis=1)

    def choice_logits(self, hidden: Float, token_ids: tuple[int, int]) -> Float:
        """The fast and the slow answer's token, in float32 at every precision."""
        if token_ids != self._choice_ids:
            raise BundleError(
                f"choice_head.safetensors: expected the rows of the tokens {token_ids}, with which "
                f"the answers of recipe.json differ first, got those of {self._choice_ids}.\n"
                "Build the bundle again: files of two builds or versions were mixed."
            )
        return action_logits(hidden, self._choice_weight)

    def action_logits(self, hidden: Float) -> Float:
        """The action rows, in float32 at every precision."""
        return action_logits(hidden, self._action_weight)

    def _padded(self, rows: NDArray[Any]) -> NDArray[Any]:
        """Repeat the last row as often as the backend's kernels ask for."""
        padding = self._padding(len(rows))
        return np.concatenate([rows, np.repeat(rows[-1:], padding, axis=0)]) if padding else rows

    @abstractmethod
    def _padding(self, count: int) -> int:
        """Rows that are added to a pass of so many; at most `SPARE_POSITIONS`."""

    @abstractmethod
    def _pass(self, embeddings: Float, rows: NDArray[np.int64]) -> Pending:
        """Pass [k, hidden] at the positions from `length` on; what returns the states of `rows`.

        What it writes beyond `length` is overwritten later.
        """

    @abstractmethod
    def _text_logits(self, hidden: Float) -> Float:
        """Return [m, text vocabulary]."""
