"""Groups of sampled answers to a scene, made by the compiled engine that a car would run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from autovla_rt.demo.drivers import FRAME_HEIGHT, FRAME_WIDTH, request_of
from autovla_rt.demo.plan_score import PlanJudge
from autovla_rt.demo.render import render_moments
from autovla_rt.demo.rewards import nearness
from autovla_rt.demo.scenes import Scene
from autovla_rt.demo.score import Score
from autovla_rt.runtime.backends import Float
from autovla_rt.runtime.decode import Decoded, draft_from
from autovla_rt.runtime.draft import NO_DRAFT
from autovla_rt.runtime.planner import Planner
from autovla_rt.runtime.sampling import Float64, Sampler, Sampling

STAGES = ("decision", "reasoning", "action")
"""What is chosen in an answer; everything else is forced."""
THINKING_TOKEN_BUDGET = 96
"""Twice the longest narration; a sampled reasoning may not find its end."""


@dataclass(frozen=True)
class Choice:
    """One token that was chosen, not forced.

    Attributes:
        position: Its index in prompt and answer.
        token_id: What was chosen.
        stage: Index into `STAGES`: what it was chosen among.
        log_probability: Of the choice, as the engine saw it.
    """

    position: int
    token_id: int
    stage: int
    log_probability: float


@dataclass(frozen=True)
class Rollout:
    """One sampled answer: what was said, what was chosen in it, and how it drives.

    `nearness` is that of the plan to the expert's (see rewards.py).
    """

    decoded: Decoded
    choices: tuple[Choice, ...]
    score: Score
    nearness: float


@dataclass(frozen=True)
class Group:
    """The sampled answers to one scene.

    Attributes:
        complex: Whether something on the way changes what the ego must do.
        prompt_ids: int64 [p].
        features: float32 [visual tokens, hidden], in the order of their placeholders.
        rollouts: The answers.
    """

    complex: bool
    prompt_ids: NDArray[np.int64]
    features: Float
    rollouts: tuple[Rollout, ...]


class RecordingSampler(Sampler):
    """A sampler that remembers its choices; it must draw them (a temperature above 0)."""

    def __init__(self, sampling: Sampling) -> None:
        super().__init__(sampling)
        self._choices: list[Choice] = []

    def choose(
        self,
        logits: NDArray[np.float32],
        candidate_ids: NDArray[np.int64],
        history: Sequence[int],
        *,
        stage: str,
    ) -> int:
        """Choose as `Sampler` does, and note the choice."""
        index = super().choose(logits, candidate_ids, history, stage=stage)
        token_id = int(candidate_ids[index])
        self._choices.append(
            Choice(len(history), token_id, STAGES.index(stage), float(np.log(self._chance)))
        )
        return index

    def _draw(self, chances: Float64) -> int:
        index = super()._draw(chances)
        self._chance = chances[index]
        return index

    def choices(self, prompt_length: int, output_ids: Sequence[int]) -> tuple[Choice, ...]:
        """Return the choices that an answer holds; a cut of the reasoning takes some back."""
        return tuple(
            choice
            for choice in self._choices
            if output_ids[choice.position - prompt_length] == choice.token_id
        )


def sample_group(planner: Planner, scene: Scene, size: int, temperature: float) -> Group:
    """Sample `size` answers to a scene; equal scenes and engines give equal answers.

    The frames are encoded and the prompt is passed once for all of them, and each answer is a draft
    of the next one, which saves passes and changes nothing.
    """
    drawn = render_moments(scene.moments, FRAME_WIDTH, FRAME_HEIGHT)
    prompted = planner.encode(request_of(scene.now, drawn))
    judge = PlanJudge(scene.now)
    draft = NO_DRAFT
    rollouts = []
    for index in range(size):
        sampler = RecordingSampler(Sampling(temperature, seed=scene.seed * size + index))
        decoded = planner.answer(
            prompted, sampler=sampler, thinking_token_budget=THINKING_TOKEN_BUDGET, draft=draft
        )
        draft = draft_from(decoded, decoded.action_indices)
        choices = sampler.choices(len(prompted.ids), decoded.output_ids)
        trajectory = planner.trajectory(decoded)
        score, near = judge.score(trajectory), nearness(trajectory, scene.trajectory)
        rollouts.append(Rollout(decoded, choices, score, near))
    videos = planner.bundle.prompt().videos
    features = [prompted.embeddings[v.start : v.start + v.count] for v in videos]
    return Group(scene.complex, prompted.ids, np.concatenate(features), tuple(rollouts))
