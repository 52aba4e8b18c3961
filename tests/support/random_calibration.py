"""Samples for a calibration of the demo checkpoint, of random patches and tokens."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from autovla_rt.config import Camera, CompiledPrompt, VideoTokens
from autovla_rt.export.calibration.collect import Plan, collect
from autovla_rt.export.calibration.record import CalibrationRecord
from autovla_rt.export.calibration.sample import Sample, TokenSequence, set_identity
from autovla_rt.export.opened_model import OpenedModel
from autovla_rt.export.progress import NoProgress

CAMERAS = (
    Camera(name="front", grid=(2, 4, 8)),
    Camera(name="front_left", grid=(2, 4, 4)),
)
STARTS = {"front": 3, "front_left": 25}
TOKENS = {"front": 16, "front_left": 8}


def samples(model: OpenedModel, count: int = 5, seed: int = 0) -> list[Sample]:
    """Samples of standard normal patches and of tokens of the text."""
    rng = np.random.default_rng(seed)
    width = model.geometry.vision.patch_width

    def of(number: int) -> Sample:
        patches = {
            camera.name: rng.standard_normal(
                (2, camera.grid[1] * camera.grid[2], width), np.float32
            )
            for camera in CAMERAS
        }
        prompt, *answers = (
            TokenSequence(rng.integers(0, 400, length), np.ones(length, np.float32))
            for length in (40, 7, 12)
        )
        return Sample(f"scene-{number}", lambda: patches, prompt, tuple(answers))

    return [of(number) for number in range(count)]


def plan(model: OpenedModel, given: list[Sample], checkpoint: str = "a") -> Plan:
    """What a calibration on such samples is of."""
    videos = tuple(VideoTokens(camera=n, start=STARTS[n], count=TOKENS[n]) for n in STARTS)
    prompt = CompiledPrompt(prefix_ids=tuple(range(40)), videos=videos, tail=())
    record = CalibrationRecord(
        checkpoint=checkpoint,
        cameras=CAMERAS,
        prompt=prompt,
        scenes=tuple(sample.token for sample in given),
        scenes_sha256=set_identity(given),
    )
    return Plan(model.weights(), model.geometry, record)


def calibrate(model: OpenedModel, folder: Path) -> Path:
    """Write a calibration on such samples; returns its folder."""
    given = samples(model)
    collect(plan(model, given), given, folder, NoProgress())
    return folder
