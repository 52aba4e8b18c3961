"""A scene as calibration reads it: patches, and the token sequences that go with them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Float = NDArray[np.float32]


@dataclass(frozen=True)
class TokenSequence:
    """A part of what is taught.

    Attributes:
        ids: int64 [k].
        weights: float32 [k], how much each position counts.
    """

    ids: NDArray[np.int64]
    weights: Float


@dataclass(frozen=True)
class Sample:
    """One scene.

    Attributes:
        token: The scene's name.
        read_patches: Reads camera -> float32 [temporal, rows * columns, patch_width], normalised.
        prompt: What all answers continue.
        answers: One for each mode that the checkpoint answers in.
    """

    token: str
    read_patches: Callable[[], Mapping[str, Float]]
    prompt: TokenSequence
    answers: tuple[TokenSequence, ...]

    @property
    def parts(self) -> tuple[TokenSequence, ...]:
        """Prompt and answers, in the order in which their rows stand."""
        return self.prompt, *self.answers


def set_identity(samples: Iterable[Sample]) -> str:
    """sha256 of everything that samples hold, in their order."""
    digest = hashlib.sha256()
    for sample in samples:
        digest.update(sample.token.encode() + b"\0")
        for camera, patches in sorted(sample.read_patches().items()):
            digest.update(camera.encode() + b"\0")
            digest.update(np.ascontiguousarray(patches).data)
        for sequence in sample.parts:
            digest.update(np.ascontiguousarray(sequence.ids).data)
            digest.update(np.ascontiguousarray(sequence.weights).data)
    return digest.hexdigest()
