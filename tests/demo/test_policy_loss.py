"""The gradient of a step of GRPO is the policy gradient, and it pulls towards the reference."""

import torch

from autovla_rt.demo.policy_loss import policy_loss, policy_terms

VOCABULARY = 7
MASKED = -1e9


def masks(*allowed):
    table = torch.full((len(allowed), VOCABULARY), MASKED)
    for row, ids in enumerate(allowed):
        table[row, list(ids)] = 0.0
    return table


ALLOWED = masks((0, 1, 2), (3, 4, 5, 6), (0, 6))
TARGETS = torch.tensor([1, 6, 0])


def logits(seed):
    return torch.randn(3, VOCABULARY, generator=torch.Generator().manual_seed(seed))


def test_gradient_is_probability_less_choice_times_advantage():
    own = logits(0).requires_grad_()
    terms = policy_terms(own, own.detach(), ALLOWED, TARGETS)
    worth = torch.tensor([2.0, -1.0, 0.0])
    policy_loss(terms, worth, kl=0.0).backward()
    chances = torch.softmax(own.detach() + ALLOWED, -1)
    chosen = torch.nn.functional.one_hot(TARGETS, VOCABULARY)
    torch.testing.assert_close(own.grad, worth[:, None] * (chances - chosen))
    assert not own.grad[0, 3:].any()  # no candidates there
    assert not own.grad[2].any()


def test_divergence_is_the_whole_one_over_the_candidates():
    own, other = logits(1), logits(2)
    terms = policy_terms(own, other, ALLOWED, TARGETS)
    for row, ids in enumerate(((0, 1, 2), (3, 4, 5, 6), (0, 6))):
        p, q = (torch.softmax(x[row, list(ids)], -1) for x in (own, other))
        torch.testing.assert_close(terms.divergence[row], (p * (p / q).log()).sum())
        torch.testing.assert_close(terms.entropy[row], -(p * p.log()).sum())
    same = policy_terms(own, own, ALLOWED, TARGETS)
    torch.testing.assert_close(same.divergence, torch.zeros(3))


def test_without_advantages_the_policy_returns_to_the_reference():
    own, other = logits(3).requires_grad_(), logits(4)
    optimizer = torch.optim.Adam([own], lr=0.05)
    for _ in range(400):
        optimizer.zero_grad()
        terms = policy_terms(own, other, ALLOWED, TARGETS)
        policy_loss(terms, torch.zeros(3), kl=0.1).backward()
        optimizer.step()
    assert terms.divergence.max() < 1e-4
