"""Choosing one of the legal tokens: greedy by default, or drawn from a warped distribution.

The order and the maths are those of Hugging Face transformers 4.57
(RepetitionPenaltyLogitsProcessor, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper),
applied to logits that the grammar has masked first. The mask is taken here by passing the legal
candidates alone, which gives the same probabilities. Scores are float64 where transformers keeps
float32, so huge logits cannot overflow.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from autovla_rt.errors import BundleError, InputError

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]
TokenIds = NDArray[np.int64]


@dataclass(frozen=True)
class Sampling:
    """How a token is chosen. The defaults are greedy and deterministic.

    Attributes:
        temperature: 0 is greedy; above 0 tokens are drawn from softmax(logits / temperature).
        top_k: Draw only from the k best candidates (ties with the k-th stay); 0 is off.
        top_p: Draw only from the best candidates that reach this probability together; 1 is off.
        repetition_penalty: Divides positive and multiplies negative logits of every id that the
            prompt or the output so far holds (Keskar et al. 2019, section 4.1); 1 is off.
        seed: Seed of the draws.

    Raises:
        InputError: A value is out of range, or top_k/top_p are set although the choice is greedy.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        rules = (
            ("temperature", "a finite number >= 0 (0 is greedy)", 0 <= self.temperature < math.inf),
            ("top_k", "a whole number >= 0 (0 is off)", _is_count(self.top_k)),
            ("top_p", "a number from 0 to 1 (1 is off)", 0 <= self.top_p <= 1),
            (
                "repetition_penalty",
                "a finite number > 0 (1 is off)",
                0 < self.repetition_penalty < math.inf,
            ),
            ("seed", "a whole number >= 0", _is_count(self.seed)),
        )
        for name, expected, holds in rules:
            if not holds:
                raise InputError(f"{name} must be {expected}, got {getattr(self, name)!r}.")
        if self.greedy and (self.top_k or self.top_p < 1):
            raise InputError(
                f"top_k={self.top_k} and top_p={self.top_p} have no effect on a greedy choice: "
                "set a temperature above 0, or leave top_k at 0 and top_p at 1."
            )

    @property
    def greedy(self) -> bool:
        """Whether the best candidate is always taken."""
        return self.temperature == 0


class Sampler:
    """Chooses tokens by one `Sampling`; one per request, since it holds the seeded generator."""

    def __init__(self, sampling: Sampling) -> None:
        self.sampling = sampling
        self._generator = np.random.default_rng(sampling.seed)

    def choose(
        self, logits: Float32, candidate_ids: TokenIds, history: Sequence[int], *, stage: str
    ) -> int:
        """Choose one candidate.

        Args:
            logits: [m] logits of the legal candidates; -inf never wins.
            candidate_ids: [m] their vocabulary ids.
            history: Ids of the prompt and of the output so far, for the repetition penalty.
            stage: What is being chosen, for the error message ("decision", "reasoning", "action").

        Returns:
            Index into the candidates; greedy takes the first of equal ones.

        Raises:
            BundleError: The logits hold NaN or +inf, or nothing but -inf.
        """
        require_usable(logits, stage)
        if not self.sampling.greedy:
            return self._draw(probabilities(logits, candidate_ids, history, self.sampling))
        if self.sampling.repetition_penalty == 1:
            return int(np.argmax(logits))
        penalty = self.sampling.repetition_penalty
        return int(np.argmax(_penalise(logits.astype(np.float64), candidate_ids, history, penalty)))

    def _draw(self, chances: Float64) -> int:
        """Invert the cumulative distribution at one uniform draw; a zero chance is never drawn."""
        cumulative = np.cumsum(chances)
        return int(
            np.searchsorted(cumulative / cumulative[-1], self._generator.random(), side="right")
        )


def probabilities(
    logits: Float32, candidate_ids: TokenIds, history: Sequence[int], sampling: Sampling
) -> Float64:
    """Warp [m] candidate logits into [m] probabilities (temperature above 0; usable logits)."""
    scores = logits.astype(np.float64)
    if sampling.repetition_penalty != 1:
        scores = _penalise(scores, candidate_ids, history, sampling.repetition_penalty)
    # The softmax ignores a shift, and shifted scores cannot overflow to +inf below.
    with np.errstate(over="ignore"):
        scores = (scores - scores.max()) / sampling.temperature
    if 0 < sampling.top_k < scores.size:
        scores = _keep_top_k(scores, sampling.top_k)
    if sampling.top_p < 1:
        scores = _keep_top_p(scores, sampling.top_p)
    return _softmax(scores)


def require_usable(logits: Float32, stage: str) -> None:
    """Refuse [m] logits from which no choice can be made.

    Raises:
        BundleError: They hold NaN or +inf, or nothing but -inf.
    """
    best = logits[np.argmax(logits)]  # argmax returns the first NaN, so one look covers all three
    if not np.isfinite(best):
        raise BundleError(
            f"The engine returned unusable logits for the {stage}: expected a finite best one, got "
            f"{best} ({np.isnan(logits).sum()} of {logits.size} are NaN). Weights may be damaged, "
            "or overflow at the bundle's precision: load it with --verify, else rebuild it at a "
            "higher precision."
        )


def _is_count(value: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _softmax(scores: Float64) -> Float64:
    weights: Float64 = np.exp(scores - scores.max())
    total: np.float64 = weights.sum()
    return weights / total


def _penalise(
    scores: Float64, candidate_ids: TokenIds, history: Sequence[int], penalty: float
) -> Float64:
    """Make ids of the history less likely, each once however often it occurs."""
    seen = np.isin(candidate_ids, np.asarray(history, dtype=np.int64))
    penalised = np.where(scores < 0, scores * penalty, scores / penalty)
    return np.where(seen, penalised, scores)


def _keep_top_k(scores: Float64, k: int) -> Float64:
    threshold = np.partition(scores, -k)[-k]
    return np.where(scores < threshold, -np.inf, scores)


def _keep_top_p(scores: Float64, top_p: float) -> Float64:
    """Drop the worst candidates as long as they hold 1 - top_p of the probability at most.

    Rounded to float32 where transformers' TopPLogitsWarper is, so that exact borders (equal logits)
    fall on the same side.
    """
    ascending = np.argsort(scores, kind="stable")
    chances = _softmax(scores)[ascending].astype(np.float32)
    cumulative = np.cumsum(chances, dtype=np.float64).astype(np.float32)
    dropped = ascending[:-1][cumulative[:-1] <= np.float32(1 - top_p)]
    kept = scores.copy()
    kept[dropped] = -np.inf
    return kept
