"""What a drive leaves behind: its record as JSON, a contact sheet, a film."""

from __future__ import annotations

import io
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from autovla_rt.demo.drive import DriveSettings, Tick
from autovla_rt.demo.filmstrip import contact_sheet, film, tick_picture
from autovla_rt.demo.score import Score
from autovla_rt.output_file import write_file

SHEET_ROWS = 9
QUALITY = 88


class Recorder:
    """Takes a drive's ticks as they come; keeps numbers and compressed pictures, no worlds.

    Args:
        settings: Of the drive.
        filmed: Keep a picture of every tick, not only of those on the contact sheet.
    """

    def __init__(self, settings: DriveSettings, *, filmed: bool) -> None:
        self._settings = settings
        self._filmed = filmed
        self._every = -(-round(settings.seconds / settings.replan_every) // SHEET_ROWS)
        self._ticks: list[dict[str, Any]] = []
        self._sheet: list[bytes] = []
        self._film: list[bytes] = []

    def add(self, tick: Tick) -> None:
        """Take one tick."""
        on_sheet = len(self._ticks) % self._every == 0
        self._ticks.append(tick.as_dict())
        if not on_sheet and not self._filmed:
            return
        picture = _jpeg(tick_picture(tick))
        if on_sheet:
            self._sheet.append(picture)
        if self._filmed:
            self._film.append(picture)

    def record(
        self, seed: int, driver: str, engine: dict[str, object] | None, score: Score
    ) -> dict[str, Any]:
        """Return everything about the drive in plain values, ready for JSON."""
        milliseconds = [tick["planning_ms"] for tick in self._ticks]
        modes = [tick["mode"] for tick in self._ticks if tick["mode"] is not None]
        return {
            "seed": seed,
            "driver": driver,
            "engine": engine,
            "settings": asdict(self._settings),
            "score": score.as_dict(),
            "plans": len(self._ticks),
            "planning_ms_median": float(np.median(milliseconds)),
            "planning_ms_max": max(milliseconds),
            "slow_share": modes.count("slow") / len(modes) if modes else None,
            "mean_speed": float(np.mean([tick["speed"] for tick in self._ticks])),
            "ticks": self._ticks,
        }

    def write(self, folder: Path, record: dict[str, Any]) -> None:
        """Write drive.jpg, drive.webp where the drive was filmed, and drive.json.

        Raises:
            StorageError: the file system refused.
        """
        title = f"drive {record['seed']}, driver {record['driver']}"
        sheet = contact_sheet([_picture(data) for data in self._sheet], title)
        write_file(folder / "drive.jpg", _jpeg(sheet))
        if self._filmed:
            moving = film([_picture(data) for data in self._film], self._settings.replan_every)
            write_file(folder / "drive.webp", moving)
        write_file(folder / "drive.json", (json.dumps(record, indent=1) + "\n").encode())


def _jpeg(picture: Image.Image) -> bytes:
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=QUALITY)
    return file.getvalue()


def _picture(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data))
