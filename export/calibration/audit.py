"""The float16 range audit: how near a calibration's values came to float16's largest number."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from autovla_rt.export.calibration.record import read_record
from autovla_rt.export.calibration.statistics import read_magnitudes
from autovla_rt.export.graph.float16 import HALF_MAX, SUM, WARNED_SHARE, kind_of

SQUARE = "square"
"""Kind of a value that only norms compute: the residual stream's square."""

STAYS = {
    SUM: "adds up over all layers",
    SQUARE: "the norm of it is computed in float32",
}
"""Kinds that are float32 in the `standard` dialect's graphs, and why."""


@dataclass(frozen=True)
class AuditedValue:
    """A value of the model on the calibration scenes.

    Attributes:
        name: As in `export/graph/float16.py`.
        what: It is.
        largest: Its largest magnitude.
        type: In a `standard` graph in fp16, "float16" or "float32".
        reason: Why it is float32; "" in float16.
    """

    name: str
    what: str
    largest: float
    type: str
    reason: str

    @property
    def share(self) -> float:
        """Of float16's largest number."""
        return self.largest / HALF_MAX

    @property
    def is_large(self) -> bool:
        """Whether it is above the share that is warned of."""
        return self.share > WARNED_SHARE


@dataclass(frozen=True)
class Audit:
    """A calibration's values, in the model's order.

    Attributes:
        scenes: Whose values they are.
        values: All that a graph has between its layers.
    """

    scenes: int
    values: tuple[AuditedValue, ...]

    def as_dict(self) -> dict[str, Any]:
        """Return it for JSON."""
        listed = [{**asdict(value), "share": value.share} for value in self.values]
        return {"scenes": self.scenes, "float16_max": HALF_MAX, "values": listed}


def audit(folder: Path) -> Audit:
    """Audit a finished calibration.

    Raises:
        CalibrationError: it is missing, damaged or of another version.
    """
    record = read_record(folder)
    steps = sorted(folder.glob("*.safetensors"), key=_order)
    values = (value for step in steps for value in _values(step))
    return Audit(len(record.scenes), tuple(values))


def _values(step: Path) -> Iterator[AuditedValue]:
    for name, channels in read_magnitudes(step).items():
        module, _, kind = name.rpartition(".")
        largest, what = float(channels.max()), kind_of(name).what
        reason = STAYS.get(kind, "")
        yield AuditedValue(name, what, largest, "float32" if reason else "float16", reason)
        if kind == SUM:
            square = f"{module}.{SQUARE}", f"{what}, squared", largest**2, "float32"
            yield AuditedValue(*square, STAYS[SQUARE])


def _order(path: Path) -> tuple[bool, list[tuple[bool, int | str]]]:
    """Sort the vision tower first, and blocks and layers by number."""
    parts = path.stem.split(".")
    rank = {"patch_embed": 0, "blocks": 1, "merger": 2}
    return not path.stem.startswith("visual."), [
        (part.isdigit(), int(part) if part.isdigit() else rank.get(part, 0)) for part in parts
    ]
