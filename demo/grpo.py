"""Reinforcement fine-tuning of the miniature with GRPO, through the compiled runtime.

AutoVLA (arXiv 2506.13757), section on reinforcement fine-tuning; GRPO: Shao et al. 2024
(DeepSeekMath), section 4.1. The vision tower stays as it is.
"""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from autovla_rt.demo.group_batch import GroupBatch, pack_groups
from autovla_rt.demo.grpo_settings import GrpoSettings
from autovla_rt.demo.model import MASKED, Miniature
from autovla_rt.demo.model_weights import save_weights
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
from autovla_rt.runtime.grammar import Grammar
from autovla_rt.runtime.reasoning import Free

FIRST_SEED = 1_000_000_000
"""Scenes of reinforcement; supervised training's seeds lie below, the benchmarks' above."""


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
        model: The checkpoint's, in float32; trained in place.
        checkpoint: The sha256 of the checkpoint, for the state.
        engine: Builds the engine that samples.
        pool: Samples with it.
        positions_of: M-RoPE positions [3, n] of a sequence.
        masks: See `stage_masks`.
        out: Gets `state.pt`, `log.jsonl` and `model.safetensors` (float16, the hub's layout), each
            of them complete at any moment.

    Raises:
        CheckpointError: `out` has a state that is damaged or belongs to other settings.
    """

    def __init__(
        self,
        settings: GrpoSettings,
        model: Miniature,
        checkpoint: str,
        engine: RolloutEngine,
        pool: RolloutPool,
        positions_of: Callable[[int], NDArray[np.int64]],
        masks: Tensor,
        out: Path,
    ) -> None:
        self.settings, self.out, self.step, self.seconds = settings, out, 0, 0.0
        self._pool, self._masks = pool, masks
        self.model = model
        self.reference = copy.deepcopy(model).requires_grad_(False)
        self._engine, self._positions_of = engine, positions_of
        self._fingerprint = settings.fingerprint(checkpoint)
        model.visual.requires_grad_(False)
        model.auxiliary.requires_grad_(False)
        self._parameters = [p for p in model.parameters() if p.requires_grad]
        self._optimizer = torch.optim.AdamW(
            self._parameters, lr=settings.lr, betas=settings.betas, weight_decay=0.0, fused=True
        )
        self.sums: dict[str, float] = {}
        self._since = time.perf_counter()
        self._resume()

    def advance(self) -> None:
        """Sample a step's answers with the present weights, and learn from them once."""
        groups = self._sample()
        for name, value in {**summary(groups, self.settings), **self._update(groups)}.items():
            self.sums[name] = self.sums.get(name, 0.0) + value
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
            "optimizer": self._optimizer.state_dict(),
        }
        write_state(self.out / STATE_FILE, state)
        save_weights(self.model, self.out / WEIGHTS_FILE)

    def _resume(self) -> None:
        path = self.out / STATE_FILE
        if path.exists():
            state = read_state(path, self._fingerprint)
            self.step, self.seconds, self.sums = state["step"], state["seconds"], state["sums"]
            self.model.load_state_dict(state["model"])
            self._optimizer.load_state_dict(state["optimizer"])
        drop_log_after(self.out / LOG_FILE, self.step)

    def _sample(self) -> list[Group]:
        """Sample a group for each scene of this step."""
        settings = self.settings
        first = FIRST_SEED + (settings.seed * settings.steps + self.step) * settings.scenes_per_step
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
                [settings.reward.reward(r.score, r.decoded.thinking_tokens) for r in g.rollouts],
                settings.least_deviation,
            )
            for g in groups
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
            batch = pack_groups([g for g, _ in part], self._positions_of)
            values = torch.from_numpy(np.concatenate([v for _, v in part])).float()
            for name, value in self._micro_batch(batch, values, answers).items():
                sums[name] = sums.get(name, 0.0) + value
        for group in self._optimizer.param_groups:
            group["lr"] = settings.rate(self.step)
        norm = torch.nn.utils.clip_grad_norm_(self._parameters, settings.clip)
        self._optimizer.step()
        self._optimizer.zero_grad()
        return {**sums, "grad_norm": float(norm), "updated_answers": float(answers), "steps": 1.0}

    def _micro_batch(self, batch: GroupBatch, values: Tensor, answers: int) -> dict[str, float]:
        stages = torch.from_numpy(batch.stages)
        logits = choice_logits(self.model, batch, self.settings.temperature)
        with torch.no_grad():
            reference = choice_logits(self.reference, batch, self.settings.temperature)
        terms = policy_terms(
            logits, reference, self._masks[stages], torch.from_numpy(batch.targets)
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


def choice_logits(model: Miniature, batch: GroupBatch, temperature: float) -> Tensor:
    """Return the logits [N, vocabulary] of every choice of a batch, divided by the temperature."""
    length = batch.token_ids.shape[1]
    row, token = np.divmod(batch.predict_from, length)
    first = int(token.min())
    hidden = model.decode(torch.from_numpy(batch.features), batch, first).flatten(0, 1)
    rows = torch.from_numpy(row * (length - first) + token - first)
    return model.logits(hidden[rows]) / temperature


def stage_masks(grammar: Grammar, vocabulary: int) -> Tensor:
    """Return what is added to the logits of each of `STAGES`: 0 for its candidates, else `MASKED`.

    Float32 [stages, vocabulary]. `grammar` is that of a checkpoint with chain of thought.
    """
    assert grammar.choice is not None
    (free,) = (segment for segment in grammar.branches["slow"] if isinstance(segment, Free))
    candidates = {
        "decision": np.array([grammar.choice.fast_id, grammar.choice.slow_id]),
        "reasoning": free.legal_ids,
        "action": grammar.action_ids,
    }
    table = torch.full((len(STAGES), vocabulary), MASKED)
    for index, stage in enumerate(STAGES):
        table[index, torch.from_numpy(candidates[stage])] = 0.0
    return table


def summary(groups: Sequence[Group], settings: GrpoSettings) -> dict[str, float]:
    """Return sums over a step's answers, for the log."""
    sums: dict[str, float] = {}
    for group in groups:
        part = "complex" if group.complex else "straightforward"
        for rollout in group.rollouts:
            tokens = rollout.decoded.thinking_tokens
            values = {
                "answers": 1.0,
                f"{part}_answers": 1.0,
                f"{part}_slow": float(rollout.decoded.mode == "slow"),
                "reward": settings.reward.reward(rollout.score, tokens),
                "score": rollout.score.score,
                "collisions": float(not rollout.score.no_collision),
                "off_road": float(not rollout.score.on_road),
                "red_lights": float(rollout.score.red_light),
                "thinking_tokens": float(tokens),
            }
            for name, value in values.items():
                sums[name] = sums.get(name, 0.0) + value
    return sums


def log_line(sums: dict[str, float]) -> dict[str, float]:
    """Turn sums into the means of a line of the log."""
    means = {
        "answers": ("reward", "score", "collisions", "off_road", "red_lights", "thinking_tokens"),
        "updated_answers": ("divergence",),
        "choices": ("engine_gap",),
        "complex_answers": ("complex_slow",),
        "straightforward_answers": ("straightforward_slow",),
        **{f"{stage}_choices": (f"{stage}_entropy",) for stage in STAGES},
    }
    return {
        **{
            name: sums.get(name, 0.0) / max(sums.get(count, 0.0), 1.0)
            for count, names in means.items()
            for name in names
        },
        **{name: sums.get(name, 0.0) for name in ("constant_groups", "invalid_rewards", "answers")},
        "grad_norm": sums["grad_norm"] / sums["steps"],
    }
