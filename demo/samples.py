"""Training samples: scenes as patches, prompts and answers; batches are fixed by their step."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from autovla_rt.config import CAMERAS, Camera, Geometry, Recipe
from autovla_rt.demo import vision_targets
from autovla_rt.demo.batch import GRID, Batch
from autovla_rt.demo.narrator import narrate
from autovla_rt.demo.packing import pack_answers
from autovla_rt.demo.render import render_moments
from autovla_rt.demo.scenes import Scene, record_scene
from autovla_rt.demo.state import SPEED
from autovla_rt.export.passes.static_mrope import VideoSpan, mrope_positions
from autovla_rt.export.prompt import compile_prompt
from autovla_rt.kernels.contour import follow
from autovla_rt.kernels.patchify import patch_levels
from autovla_rt.runtime.grammar import render

WIDTH, HEIGHT = 196, 112
ACTION_WEIGHT, DECISION_WEIGHT, REASONING_WEIGHT, LITERAL_WEIGHT = 1.0, 1.0, 0.4, 0.05


@dataclass(frozen=True)
class Answer:
    """Token ids of one answer and the weight of predicting each."""

    ids: NDArray[np.int64]
    weights: NDArray[np.float32]


@dataclass(frozen=True)
class Sample:
    """One scene, ready for a batch: patches, prompt ids, answers and auxiliary targets."""

    patches: NDArray[np.uint8]
    prompt: NDArray[np.int64]
    answers: tuple[Answer, ...]
    auxiliary: NDArray[np.float32]
    auxiliary_weights: NDArray[np.float32]


class SampleMaker:
    """Turns scenes into samples of one checkpoint's tokenizer, codebook and recipe.

    Without `reasoning` every scene has a fast answer alone, and that is what is decided for.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        corners: NDArray[np.float32],
        recipe: Recipe,
        geometry: Geometry,
        *,
        reasoning: bool = True,
    ):
        self.tokenizer = tokenizer
        self._reasoning = reasoning
        self.geometry = geometry
        self._corners = corners
        self._answer = recipe.answer
        cameras = [Camera(name=name, grid=GRID) for name in CAMERAS]
        self._prompt = compile_prompt(
            self.tokenizer, recipe.prompt_cot, cameras, geometry, add_vision_id=False
        )
        self._spans = [VideoSpan(video.start, GRID) for video in self._prompt.videos]
        self._end = self.tokenizer.token_to_id("<|im_end|>")
        self._first_action = self.tokenizer.token_to_id("<action_0>")

    def sample(self, scene: Scene) -> Sample:
        """Return the sample of a scene: a fast answer, and behind it a slow one.

        Both teach what to do where an answer is forced. The decision is taught by the right one
        alone: fast for a straightforward scene, slow for a complex one.
        """
        fast = self._fast(scene)
        answers = (fast, self._slow(scene)) if self._reasoning else (fast,)
        patches, auxiliary, weights = see(scene, self.geometry)
        return Sample(patches, self.prompt_ids(scene), answers, auxiliary, weights)

    def prompt_ids(self, scene: Scene) -> NDArray[np.int64]:
        """Return the ids of the whole prompt."""
        world = scene.now
        tail = render(
            self._prompt.tail,
            velocity=float(world.ego[SPEED]),
            acceleration=world.acceleration,
            instruction=world.instruction,
        )
        return np.array([*self._prompt.prefix_ids, *self._encode(tail)], np.int64)

    def positions(self, length: int) -> NDArray[np.int64]:
        """Return the M-RoPE positions [3, length] of a sequence."""
        return mrope_positions(self.geometry, self._spans, length)

    def _fast(self, scene: Scene) -> Answer:
        ids = self._encode(render(self._answer.fast, actions=self._actions(scene)))
        other = self._encode(render(self._answer.slow, actions="", reasoning="Go."))
        weights = self._weights(ids)
        wrong = scene.complex and self._reasoning
        weights[_first_difference(ids, other)] = 0.0 if wrong else DECISION_WEIGHT
        return Answer(np.array([*ids, self._end], np.int64), weights)

    def _slow(self, scene: Scene) -> Answer:
        reasoning = narrate(scene)
        ids = self._encode(
            render(self._answer.slow, actions=self._actions(scene), reasoning=reasoning)
        )
        bare = self._encode(render(self._answer.slow, actions="", reasoning=""))
        fast = self._encode(render(self._answer.fast, actions=""))
        weights = self._weights(ids)
        begin = _first_difference(ids, bare)
        weights[begin : begin + len(self._encode(reasoning)) + 1] = REASONING_WEIGHT
        weights[_first_difference(ids, fast)] = DECISION_WEIGHT if scene.complex else 0.0
        return Answer(np.array([*ids, self._end], np.int64), weights)

    def _weights(self, ids: Sequence[int]) -> NDArray[np.float32]:
        weights = np.full(len(ids) + 1, LITERAL_WEIGHT, np.float32)
        weights[:-1][np.array(ids) >= self._first_action] = ACTION_WEIGHT
        return weights

    def _actions(self, scene: Scene) -> str:
        return "".join(f"<action_{i}>" for i in follow(self._corners, scene.trajectory))

    def _encode(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=False).ids
        return ids


class SceneSource:
    """The batches of a training: every step has scenes of its own, numbered through."""

    def __init__(self, maker: SampleMaker, batches: int, scenes_per_batch: int) -> None:
        self._maker = maker
        self._batches = batches
        self._scenes = scenes_per_batch

    def batch(self, step: int) -> list[Batch]:
        """Return the micro-batches of a step."""
        first = step * self._batches * self._scenes
        starts = range(first, first + self._batches * self._scenes, self._scenes)
        return [self._micro_batch(range(start, start + self._scenes)) for start in starts]

    def _micro_batch(self, seeds: Iterable[int]) -> Batch:
        return pack([self._maker.sample(record_scene(seed)) for seed in seeds], self._maker)


def see(
    scene: Scene, geometry: Geometry
) -> tuple[NDArray[np.uint8], NDArray[np.float32], NDArray[np.float32]]:
    """Return what the cameras saw: patches [6, 112, 1176], auxiliary targets and weights.

    The targets describe the newer frame of each pair.
    """
    moments = render_moments(scene.moments, WIDTH, HEIGHT)
    patches, targets, weights = [], [], []
    for camera in CAMERAS:
        frames = np.stack([views[camera].pixels for views in moments])
        patches.append(patch_levels(frames, geometry.vision))
        for index in (1, 3):
            view, world = moments[index][camera], scene.moments[index]
            target = np.zeros((28, vision_targets.WIDTH), np.float32)
            weight = np.zeros_like(target)
            vision_targets.describe(view.ids, view.depths, world.agents, world.ego, target, weight)
            targets.append(target)
            weights.append(weight)
    return np.concatenate(patches), np.concatenate(targets), np.concatenate(weights)


def pack(samples: Sequence[Sample], maker: SampleMaker) -> Batch:
    """Put samples into one batch: prompt and answers behind it, padded to the longest."""
    rows = [(s.prompt, [answer.ids for answer in s.answers]) for s in samples]
    tokens, sources = pack_answers(rows, maker.positions)
    predictions = [
        (source[wanted], answer.ids[wanted], answer.weights[wanted])
        for sample, of_sample in zip(samples, sources, strict=True)
        for answer, source in zip(sample.answers, of_sample, strict=True)
        for wanted in (answer.weights > 0,)
    ]
    predict_from, targets, weights = map(np.concatenate, zip(*predictions, strict=True))
    return Batch(
        **vars(tokens),
        patches=np.stack([s.patches for s in samples]),
        predict_from=predict_from,
        targets=targets,
        weights=weights,
        auxiliary=np.stack([s.auxiliary for s in samples]),
        auxiliary_weights=np.stack([s.auxiliary_weights for s in samples]),
    )


def _first_difference(ids: Sequence[int], other: Sequence[int]) -> int:
    for index, (a, b) in enumerate(zip(ids, other, strict=False)):
        if a != b:
            return index
    return min(len(ids), len(other))
