"""What a step of GRPO minimises, from the logits of every choice."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class PolicyTerms:
    """Values [N] of each choice: its log-probability, divergence from the reference, entropy."""

    log_probability: Tensor
    divergence: Tensor
    entropy: Tensor


def policy_terms(logits: Tensor, reference: Tensor, masks: Tensor, targets: Tensor) -> PolicyTerms:
    """Compare a policy with its reference at N choices.

    Args:
        logits: [N, vocabulary] of the policy, already divided by the temperature.
        reference: [N, vocabulary] of the reference, likewise.
        masks: [N, vocabulary], 0 for candidates and a large negative number for others.
        targets: int64 [N], what was chosen.

    The divergence is the whole KL(policy || reference) over the candidates, not an estimate from
    the one that was drawn.
    """
    own = torch.log_softmax(logits.float() + masks, -1)
    other = torch.log_softmax(reference.float() + masks, -1)
    chances = own.exp()
    return PolicyTerms(
        own.gather(-1, targets[:, None])[:, 0],
        (chances * (own - other)).sum(-1),
        -(chances * own).sum(-1),
    )


def policy_loss(terms: PolicyTerms, advantages: Tensor, kl: float) -> Tensor:
    """Return the sum over choices of kl * divergence - advantage * ratio.

    `advantages` [N] are those of each choice's answer. Answers are used once, by the policy that
    drew them: the ratio to it is 1, has only a gradient, and needs no clipping (Shao et al. 2024,
    equation 21).
    """
    ratio = torch.exp(terms.log_probability - terms.log_probability.detach())
    return (kl * terms.divergence - advantages * ratio).sum()
