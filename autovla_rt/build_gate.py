"""The gate that a built engine passes, or not: its plans against those of the unquantized one."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from autovla_rt.bundle import Quality, load_bundle
from autovla_rt.export.build import build_engine
from autovla_rt.export.opened_model import OpenedModel
from autovla_rt.export.progress import Progress
from autovla_rt.export.settings import Settings
from autovla_rt.runtime.evaluation.report import conclude
from autovla_rt.runtime.evaluation.run import (
    Evaluation,
    close_engines,
    evaluate,
    scene_files,
)


@dataclass(frozen=True)
class BuildGate:
    """What a build is judged by.

    Attributes:
        scenes: Folder of scene files.
        sensor_root: Root of their paths.
        reference: Folder of the engine that it is compared with.
        limits: By name (`read_limits`).
        report: Writes more files into the bundle's folder.
    """

    scenes: Path
    sensor_root: Path
    reference: Path
    limits: dict[str, float]
    report: Callable[[Path], None] = lambda _folder: None

    def __call__(self, building: Path) -> Quality:
        """Judge a bundle, and write the report into its folder.

        Raises:
            InputError: a scene is unusable.
            LayoutError: the reference answers other requests.
        """
        evaluation = Evaluation(building, self.reference, self.sensor_root)
        with tempfile.TemporaryDirectory() as lines:
            try:
                records = list(evaluate(evaluation, scene_files(self.scenes), Path(lines)))
            finally:
                close_engines()
        self.report(building)
        _, checks = conclude(evaluation, self.scenes, records, self.limits, building)
        reference = load_bundle(self.reference)
        return Quality(
            passed=all(check.passed for check in checks),
            against=reference.identity,
            against_precision=reference.manifest.precision,
            scenes=len(records),
            limits=self.limits,
            measured={check.name: check.measured for check in checks},
        )


@contextmanager
def reference_engine(
    model: OpenedModel, settings: Settings, given: Path | None, beside: Path, progress: Progress
) -> Iterator[Path]:
    """Yield the engine to compare with: a given one, or one in float32 that is built for the while.

    Args:
        model: The checkpoint.
        settings: Of the engine that is judged.
        given: Folder of a bundle.
        beside: Folder next to which the other one is built; 4 bytes a parameter.
        progress: Is told how far that is.
    """
    if given is not None:
        yield given
        return
    with tempfile.TemporaryDirectory(dir=beside.resolve().parent, prefix=".reference-") as folder:
        place = Path(folder) / "fp32"
        plain = replace(settings, name="reference", precision="fp32", calibration=None)
        build_engine(model, plain, place, progress)
        yield place
