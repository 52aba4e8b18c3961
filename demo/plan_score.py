"""How well one plan drives: followed for its 5 s in the world as it is now."""

from __future__ import annotations

from autovla_rt.demo.road import Array
from autovla_rt.demo.scenes import NUM_POSES, STEPS_PER_POSE
from autovla_rt.demo.score import Score, Scorer
from autovla_rt.demo.state import ALONG
from autovla_rt.demo.tracking import PlannedPath
from autovla_rt.demo.world import World

STEPS = NUM_POSES * STEPS_PER_POSE


class PlanJudge:
    """Scores plans for one moment of a world.

    The controller follows a plan to its end while the world goes on as it does now: the light keeps
    its colour, agents begin nothing new. That is the world in which the expert planned, so a right
    answer can be known from what the cameras see (NAVSIM scores plans likewise, in a world that
    does not answer to them: Dauner et al. 2024, section 4).
    """

    def __init__(self, now: World) -> None:
        self._now = now.copy()
        self._now.freeze_light()
        expert = self._now.copy()
        expert.advance(STEPS, frozen=True)
        self._expert_metres = float(expert.ego[ALONG] - now.ego[ALONG])

    def score(self, trajectory: Array) -> Score:
        """Return the score of a plan [10, 3] in the ego frame (metres, radians; 0.5 s apart)."""
        world = self._now.copy()
        scorer = Scorer(world)
        path = PlannedPath(world.ego[:3].copy(), trajectory, world.time)
        for _ in range(STEPS):
            world.step(*path.control(world.ego, world.time), frozen=True)
            scorer.observe(world)
        return scorer.result(self._expert_metres)
