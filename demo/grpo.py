"""Reinforcement fine-tuning of the miniature with GRPO, through the compiled runtime.

AutoVLA (arXiv 2506.13757), section on reinforcement fine-tuning; GRPO: Shao et al. 2024
(DeepSeekMath), section 4.1. The vision tower stays as it is.
"""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from autovla_rt.demo.group_batch import GroupBatch, pack_groups
from autovla_rt.demo.grpo_log import add, log_line, reward_of, summary
from autovla_rt.demo.grpo_settings import GrpoSettings
from autovla_rt.demo.model_weights import save_weights
from autovla_rt.demo.policy import Policy, choice_logits
from autovla_rt.demo.policy_loss import policy_loss, policy_terms
from autovla_rt.demo.rewards import advantages
from autovla_rt.demo.rollout_engine import RolloutEngine
from autovla_rt.demo.rollout_pool import RolloutPool, SceneOrder
from autovla_rt.demo.rollouts import STAGES, Group
from autovla_rt.demo.sft import WEIGHTS_FILE, stop_requests
from autovla_rt.demo.training_state import (
    LOG_FILE,
    STATE_FILE,
    drop_log_after,
    read_state,
    write_state,
)

FIRST_SEED = 1_000_000_000
"""Scenes of reinforcement; supervised training's seeds lie below, the benchmarks' above."""
MOST_STEPS = 100_000
"""Trainings with other seeds have other scenes."""


def reinforce(trainer: Reinforcer) -> int:
    """Train until the last step, or until SIGTERM or SIGINT; returns the number of steps done.

    Raises:
        StorageError: the file system refused.
    """
    settings = trainer.settings
    torch.set_num_threads(settings.threads)
    with stop_requests() as stopped:
        while trainer.step < settings.steps and not stopped():
            trainer.advance()
            if trainer.step % settings.save_every == 0:
                trainer.save()
    trainer.save()
    return trainer.step


class Reinforcer:
    """Policy, reference, optimiser and log of one reinforcement.

    Args:
        settings: What it depends on.
        policy: The checkpoint's; its model is trained in place.
        engine: Builds the engine that samples.
        pool: Samples with it.
        out: Gets `state.pt`, `log.jsonl` and `model.safetensors` (float16, the hub's layout, the
            moving average of the weights), each of them complete at any moment.

    Raises:
        CheckpointError: `out` has a state that is damaged or belongs to other settings.
    """

    def __init__(
        self,
        settings: GrpoSettings,
        policy: Policy,
        engine: RolloutEngine,
        pool: RolloutPool,
        out: Path,
    ) -> None:
        self.settings, self.out, self.step, self.seconds = settings, out, 0, 0.0
        self._policy, self._engine, self._pool = policy, engine, pool
        self._fingerprint = settings.fingerprint(policy.sha256)
        self.model = model = policy.model
        self.reference = copy.deepcopy(model).requires_grad_(False)
        model.visual.requires_grad_(False)
        model.auxiliary.requires_grad_(False)
        self._parameters = [p for p in model.parameters() if p.requires_grad]
        self.average = {name: p.detach().clone() for name, p in model.named_parameters()}
        self._optimizer = torch.optim.AdamW(
            self._parameters, lr=settings.lr, betas=settings.betas, weight_decay=0.0, fused=True
        )
        self.sums: dict[str, float] = {}
        self._since = time.perf_counter()
        self._resume()

    def advance(self) -> None:
        """Sample a step's answers with the present weights, and learn from them once."""
        groups = self._sample()
        add(self.sums, summary(groups, self.settings.reward))
        add(self.sums, self._update(groups))
        self.step += 1
        if self.step % self.settings.log_every == 0:
            self._log()

    def save(self) -> None:
        """Write the state, then the weights."""
        self._lap()
        state = {
            "fingerprint": self._fingerprint,
            "step": self.step,
            "seconds": self.seconds,
            "sums": self.sums,
            "model": self.model.state_dict(),
            "average": self.average,
            "optimizer": self._optimizer.state_dict(),
        }
        write_state(self.out / STATE_FILE, state)
        save_weights(self.model, self.out / WEIGHTS_FILE, self.average)

    def _resume(self) -> None:
        path = self.out / STATE_FILE
        if path.exists():
            state = read_state(path, self._fingerprint)
            self.step, self.seconds, self.sums = state["step"], state["seconds"], state["sums"]
            self.model.load_state_dict(state["model"])
            self.average = state["average"]
            self._optimizer.load_state_dict(state["optimizer"])
        drop_log_after(self.out / LOG_FILE, self.step)

    def _sample(self) -> list[Group]:
        """Sample a group for each scene of this step."""
        settings = self.settings
        number = settings.seed * MOST_STEPS + self.step
        first = FIRST_SEED + number * settings.scenes_per_step
        driven = round(settings.driven_share * settings.scenes_per_step)
        orders = [
            SceneOrder(first + index, driven=index < driven)
            for index in range(settings.scenes_per_step)
        ]
        return self._pool.sample(self._engine.build(self.model), self.step, orders)

    def _update(self, groups: Sequence[Group]) -> dict[str, float]:
        """Take one optimisation step; returns what the log averages."""
        settings = self.settings
        worth = [
            advantages(
                [reward_of(answer, settings.reward) for answer in group.rollouts],
                settings.least_deviation,
            )
            for group in groups
        ]
        kept = [(g, w.values) for g, w in zip(groups, worth, strict=True) if not w.constant]
        sums = {
            "constant_groups": float(len(groups) - len(kept)),
            "invalid_rewards": float(sum(w.invalid for w in worth)),
        }
        per_batch = settings.groups_per_batch
        answers = len(kept) * settings.group_size
        for start in range(0, len(kept), per_batch):
            part = kept[start : start + per_batch]
            batch = pack_groups([g for g, _ in part], self._policy.positions_of)
            values = torch.from_numpy(np.concatenate([v for _, v in part])).float()
            add(sums, self._micro_batch(batch, values, answers))
        for group in self._optimizer.param_groups:
            group["lr"] = settings.rate(self.step)
        norm = torch.nn.utils.clip_grad_norm_(self._parameters, settings.clip)
        self._optimizer.step()
        self._optimizer.zero_grad()
        self._follow()
        return {**sums, "grad_norm": float(norm), "updated_answers": float(answers), "steps": 1.0}

    @torch.no_grad()
    def _follow(self) -> None:
        """Move the average towards the weights."""
        weights: list[Tensor] = [p for _, p in self.model.named_parameters()]
        torch._foreach_lerp_(list(self.average.values()), weights, 1 - self.settings.ema_decay)

    def _micro_batch(self, batch: GroupBatch, values: Tensor, answers: int) -> dict[str, float]:
        stages = torch.from_numpy(batch.stages)
        logits = choice_logits(self.model, batch, self.settings.temperature)
        with torch.no_grad():
            reference = choice_logits(self.reference, batch, self.settings.temperature)
        terms = policy_terms(
            logits, reference, self._policy.masks[stages], torch.from_numpy(batch.targets)
        )
        chosen = values[torch.from_numpy(batch.answers)]
        loss = policy_loss(terms, chosen, self.settings.kl) / answers
        loss.backward()  # type: ignore[no-untyped-call]
        seen = torch.from_numpy(batch.log_probabilities)
        gap = (terms.log_probability.detach() - seen).abs()
        sums = {
            "divergence": float(terms.divergence.detach().sum()),
            "engine_gap": float(gap.sum()),
            "choices": float(len(gap)),
        }
        for index, stage in enumerate(STAGES):
            of_stage = stages == index
            sums[f"{stage}_entropy"] = float(terms.entropy.detach()[of_stage].sum())
            sums[f"{stage}_choices"] = float(of_stage.sum())
        return sums

    def _log(self) -> None:
        """Append the means since the last line."""
        self._lap()
        line = {"step": self.step, **log_line(self.sums), "hours": round(self.seconds / 3600, 5)}
        with (self.out / LOG_FILE).open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        self.sums = {}

    def _lap(self) -> None:
        """Add the time since the last lap to the whole training's."""
        now = time.perf_counter()
        self.seconds += now - self._since
        self._since = now
