"""What a training step minimises: soft targets over near actions, and the auxiliary head."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from autovla_rt.kernels.contour import corner_distances

SIGMA = 0.06
NEAREST = 16


@dataclass(frozen=True)
class SoftTargets:
    """Target distribution of every token id, the id itself first.

    Attributes:
        ids: int64 [vocabulary, k]; k repeats of itself for a token that is no action.
        probabilities: float32 [vocabulary, k], each row sums to 1.
        action_start_id: actions are this id and all behind it.
    """

    ids: Tensor
    probabilities: Tensor
    action_start_id: int


def soft_targets(corners: ArrayLike, action_start_id: int) -> SoftTargets:
    """Spread each action over its 16 nearest, Gaussian in the mean corner distance (0.06 m).

    `corners` are the codebook [K, 4, 2] in metres; its actions are the last K ids.
    """
    corners = np.asarray(corners, np.float64)
    count = min(NEAREST, len(corners))
    near = np.empty((len(corners), count), np.int64)
    chances = np.empty((len(corners), count))
    for index, action in enumerate(corners):
        distances = corner_distances(corners, action).mean(-1)
        distances[index] = -1  # first, even before a copy of itself
        near[index] = np.argsort(distances, kind="stable")[:count]
        distances[index] = 0
        chances[index] = np.exp(-0.5 * (distances[near[index]] / SIGMA) ** 2)
    chances /= chances.sum(-1, keepdims=True)
    text = np.tile(np.arange(action_start_id)[:, None], count)
    certain = np.eye(1, count).repeat(action_start_id, 0)
    return SoftTargets(
        torch.from_numpy(np.concatenate([text, near + action_start_id])),
        torch.from_numpy(np.concatenate([certain, chances]).astype(np.float32)),
        action_start_id,
    )


def cross_entropy(
    hidden: Tensor, table: Tensor, ids: Tensor, probabilities: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the cross-entropies [N] against soft targets [N, k] and against the first of them.

    `hidden` is [N, width], `table` the tied embeddings [vocabulary, width].
    """
    logits = (hidden @ table.to(hidden.dtype).t()).float()
    total = logits.logsumexp(-1)
    chosen = logits.gather(-1, ids)
    return total - (chosen * probabilities).sum(-1), total - chosen[:, 0]


def auxiliary_loss(logits: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    """Return the weighted sum of binary cross-entropies of [B, tokens, A]."""
    return torch.nn.functional.binary_cross_entropy_with_logits(
        logits.float(), targets, weights, reduction="sum"
    )
