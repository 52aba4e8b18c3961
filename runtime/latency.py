"""What a plan takes on this machine: measured once, saved beside the bundle, for deadlines."""

from __future__ import annotations

import re
from pathlib import Path

from pydantic import ValidationError

from autovla_rt.bundle import Bundle
from autovla_rt.config import LATENCY_FOLDER, Model
from autovla_rt.errors import InputError
from autovla_rt.output_file import make_folder, write_file


class LatencyModel(Model):
    """The 99th percentiles that a deadline is planned with, in milliseconds.

    Attributes:
        engine_sha256: The bundle that was measured.
        device: The machine.
        threads: Of the engine; None took every core.
        requests: How many were measured.
        encode_ms: Frames to embeddings, and the draft.
        prefill_ms: The prompt's pass with all that rides along, and the decision.
        token_ms: A pass for one token of reasoning, the choice included.
        actions_ms: The pass of the scaffold and one for every action (the worst case of drafts),
            the choices and the trajectory.
        pass_ms: Median of a pass behind the prompt, by its rows: what a longer draft costs.
    """

    engine_sha256: str
    device: str
    threads: int | None
    requests: int
    encode_ms: float
    prefill_ms: float
    token_ms: float
    actions_ms: float
    pass_ms: dict[int, float]

    @property
    def least_ms(self) -> float:
        """The least deadline: a plan without reasoning."""
        return self.encode_ms + self.prefill_ms + self.actions_ms


def latency_path(bundle: Bundle, device: str, threads: int | None) -> Path:
    """Return where the latency model of a machine lies, beside the bundle's own files."""
    name = re.sub(r"[^A-Za-z0-9]+", "-", device).strip("-") or "device"
    return bundle.folder / LATENCY_FOLDER / f"{name}-{threads or 'all'}.json"


def save_latency(bundle: Bundle, model: LatencyModel) -> Path:
    """Save a latency model; returns its path.

    Raises:
        StorageError: the file system refused.
    """
    path = latency_path(bundle, model.device, model.threads)
    make_folder(path.parent)
    write_file(path, (model.model_dump_json(indent=1) + "\n").encode())
    return path


def measured_pass_ms(bundle: Bundle, device: str, threads: int | None) -> dict[int, float]:
    """Return what passes take with this bundle on this machine, by rows; empty if nobody measured.

    Raises:
        InputError: the file is damaged or of another bundle or machine.
    """
    saved = latency_path(bundle, device, threads).exists()
    return load_latency(bundle, device, threads).pass_ms if saved else {}


def load_latency(bundle: Bundle, device: str, threads: int | None) -> LatencyModel:
    """Load what was measured with this bundle on this machine.

    Raises:
        InputError: nothing was, or the file is damaged or of another bundle or machine.
    """
    path = latency_path(bundle, device, threads)
    option = "" if threads is None else f" --threads {threads}"
    again = f"Measure it here: autovla-rt profile --engine {bundle.folder}{option} --save"
    try:
        model = LatencyModel.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        raise InputError(
            f"a deadline needs the latency of this engine on this machine ({device}, "
            f"{threads or 'all'} threads), which was not measured: there is no {path}.\n{again}"
        ) from None
    except (OSError, ValidationError) as error:
        raise InputError(f"{path}: expected a latency model, got: {error}\n{again}") from error
    found = model.engine_sha256, model.device, model.threads
    if found != (bundle.identity, device, threads):
        raise InputError(
            f"{path}: expected the latency of engine {bundle.identity[:16]} on {device} with "
            f"{threads or 'all'} threads, got that of {found[0][:16]} on {found[1]} with "
            f"{found[2] or 'all'}.\n"
            f"{again}"
        )
    return model
