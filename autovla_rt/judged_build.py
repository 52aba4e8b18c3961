"""A build that is judged on scenes, and may choose its precisions by what they cost there."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from autovla_rt.build_gate import BuildGate, reference_engine
from autovla_rt.bundle import Manifest
from autovla_rt.errors import InputError
from autovla_rt.export.build import build_engine
from autovla_rt.export.opened_model import OpenedModel
from autovla_rt.export.progress import Progress
from autovla_rt.export.settings import Settings
from autovla_rt.fit import Bench, fit_folder, search
from autovla_rt.fit_report import print_fit, write_report
from autovla_rt.precision_search import Wish
from autovla_rt.runtime.evaluation.run import scene_files


@dataclass(frozen=True)
class Judging:
    """What a build is judged by.

    Attributes:
        scenes: Folder of scene files.
        sensor_root: Root of their paths.
        against: Folder of an engine to compare with; None builds one in float32.
        limits: By name (`read_limits`).
        wish: What precisions are chosen by; None builds in those of the settings.
        threads: Of the engines that are timed for it; None takes every core.
    """

    scenes: Path
    sensor_root: Path
    against: Path | None
    limits: dict[str, float]
    wish: Wish | None
    threads: int | None = None


def judged_build(
    model: OpenedModel, settings: Settings, out: Path, progress: Progress, judging: Judging
) -> Manifest:
    """Build a bundle, with the verdict and its report inside.

    Raises:
        InputError: there are no scenes, or too few for a search; or one is unusable.
        FitError: no combination of precisions is as wished.
        AutovlaError: as `build_engine` and `BuildGate`.
    """
    count, least = len(scene_files(judging.scenes)), judging.limits["scenes"]
    if judging.wish is not None and count < least:
        raise InputError(
            f"{judging.scenes}: expected at least {least:g} scenes, got {count}: nothing would "
            "pass the gate.\nGive more, or set --gate scenes=NUMBER."
        )
    with reference_engine(model, settings, judging.against, out, progress) as reference:
        gate = BuildGate(judging.scenes, judging.sensor_root, reference, judging.limits)
        if (wish := judging.wish) is not None:
            bench = Bench(model, settings, gate, fit_folder(out), progress, judging.threads)
            found = search(bench, settings, wish, judging.limits)
            print_fit(found, wish)
            gate = replace(gate, report=lambda folder: write_report(folder, found, wish))
            settings = settings.with_precision(found.chosen.precision)
        return build_engine(model, settings, out, progress, gate)
