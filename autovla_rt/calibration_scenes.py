"""Official scenes as calibration samples: frames, prompts, and the answers that they teach."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from autovla_rt.config import Camera, CompiledPrompt, Template
from autovla_rt.errors import CalibrationError
from autovla_rt.export.calibration.sample import Sample, TokenSequence
from autovla_rt.export.opened_model import OpenedModel
from autovla_rt.kernels.contour import follow
from autovla_rt.runtime.frames import FramePreprocessor
from autovla_rt.runtime.grammar import render
from autovla_rt.runtime.prompt import PromptEncoder
from autovla_rt.runtime.scene import Request, read_reasoning, read_scene

FEWEST = 4
"""Scenes that a calibration needs; 32 and more are usual."""

ACTION_WEIGHT, DECISION_WEIGHT = 16.0, 16.0
"""How much a position counts whose output is an action, or the choice between fast and slow.

There are 10 and 1 of them among 1,250, and the plan is made of these.
"""


def find_scenes(folder: Path, count: int, seed: int) -> list[Path]:
    """Choose so many scene files of a folder, the same for the same seed, in the order of names.

    Raises:
        CalibrationError: there are fewer than `FEWEST`, or than asked for.
    """
    files = sorted(folder.glob("*.json"))
    if count < FEWEST or len(files) < count:
        raise CalibrationError(
            f"{folder}: expected {max(count, FEWEST)} scene files (*.json), at least {FEWEST}, got "
            f"{len(files)} and --count {count}.\nGive the folder of AutoVLA's preprocessed scenes, "
            "or another --count."
        )
    chosen = np.random.default_rng(seed).choice(len(files), count, replace=False)
    return [files[index] for index in sorted(chosen)]


class SampleReader:
    """Reads scenes for one checkpoint and camera layout."""

    def __init__(
        self, model: OpenedModel, cameras: Sequence[Camera], prompt: CompiledPrompt
    ) -> None:
        self._model, self._cameras = model, cameras
        self._prompt = PromptEncoder(prompt, model.tokenizer)
        self._frames = FramePreprocessor(model.preprocessing, model.geometry.vision)

    def read(self, scenes: Sequence[Path], sensor_root: Path) -> list[Sample]:
        """Return samples, whose frames are read when they are needed.

        Raises:
            InputError: a scene is unusable.
            CalibrationError: a scene has no trajectory, or none of them reasoning, which the
                checkpoint was taught.
        """
        samples, reasoned = [], 0
        for path in scenes:
            request, reasoning = read_scene(path, sensor_root), read_reasoning(path)
            reasoned += bool(reasoning)
            samples.append(self._sample(path, request, reasoning))
        if self._model.use_cot and not reasoned:
            raise CalibrationError(
                f"{len(scenes)} scenes from {scenes[0].parent}: expected some with reasoning "
                "(cot_output), since this checkpoint answers with chain of thought, got none.\n"
                "Give scenes of its training data, or more of them with --count."
            )
        return samples

    def _patches(self, request: Request) -> dict[str, NDArray[np.float32]]:
        return {
            camera.name: self._frames.patches(request.frames[camera.name], camera)
            for camera in self._cameras
        }

    def _sample(self, path: Path, request: Request, reasoning: str) -> Sample:
        """Return a scene with the answers in every mode that can be taught of it."""
        if request.expert is None:
            raise CalibrationError(
                f"{path}: expected gt_trajectory, whose actions the answer is taught with, got "
                "none.\nGive scenes of the training data."
            )
        followed = follow(self._model.codebook, np.array(request.expert, np.float64))
        actions = "".join(f"<action_{index}>" for index in followed)
        ids = self._prompt.ids(request)
        prompt = TokenSequence(ids, np.ones(len(ids), np.float32))
        answers = self._answers(actions, reasoning)
        return Sample(path.stem, partial(self._patches, request), prompt, answers)

    def _answers(self, actions: str, reasoning: str) -> tuple[TokenSequence, ...]:
        answer = self._model.recipe.answer
        if not self._model.use_cot:
            return (self._answer(self._ids(answer.direct, actions=actions), None),)
        fast = self._ids(answer.fast, actions=actions)
        slow = self._ids(answer.slow, actions=actions, reasoning=reasoning or "Go.")
        decision = next(
            index for index, (a, b) in enumerate(zip(fast, slow, strict=False)) if a != b
        )
        answers = (fast, slow) if reasoning else (fast,)
        return tuple(self._answer(ids, decision) for ids in answers)

    def _answer(self, answer: list[int], decision: int | None) -> TokenSequence:
        """Weigh the positions by what comes out of them: that of the token behind.

        All answers begin alike, so no position of the prompt chooses between them.
        """
        ids = np.array([*answer, self._model.end_token_ids[0]], np.int64)
        taught = np.ones(len(ids), np.float32)
        start = self._model.actions.action_start_id
        taught[ids >= start] = ACTION_WEIGHT
        if decision is not None:
            taught[decision] = DECISION_WEIGHT
        return TokenSequence(ids, np.append(taught[1:], np.float32(1)))

    def _ids(self, template: Template, **slots: str) -> list[int]:
        text = render(template, **slots)
        ids: list[int] = self._model.tokenizer.encode(text, add_special_tokens=False).ids
        return ids
