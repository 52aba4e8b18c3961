"""Supervised fine-tuning of the miniature on a CPU: resumable, and the same every time."""

from __future__ import annotations

import json
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from autovla_rt.demo.batch import Batch
from autovla_rt.demo.loss import auxiliary_loss, cross_entropy, soft_targets
from autovla_rt.demo.model import Miniature
from autovla_rt.demo.model_weights import initialise, save_weights
from autovla_rt.demo.prefetch import Source, prefetched
from autovla_rt.demo.training_settings import Settings
from autovla_rt.demo.training_state import (
    LOG_FILE,
    STATE_FILE,
    drop_log_after,
    read_state,
    write_state,
)

WEIGHTS_FILE = "model.safetensors"
MUON_PARTS = ("visual.blocks.", "visual.merger.", "model.layers.")


def train(settings: Settings, source: Source, out: Path) -> int:
    """Train until the last step, or until SIGTERM or SIGINT; go on from `out`'s state if there.

    `out` gets `state.pt`, `log.jsonl` and `model.safetensors` (float16, hub's layout, the moving
    average of the weights), each of them complete at any moment.

    Returns:
        The number of steps done, `settings.steps` where training is complete.

    Raises:
        CheckpointError: `out` has a state that is damaged or belongs to other settings.
        StorageError: the file system refused.
    """
    torch.set_num_threads(settings.threads)
    out.mkdir(parents=True, exist_ok=True)
    trainer = Trainer(settings, out)
    trainer.warm_up(source.batch(0))
    steps = range(trainer.step, settings.steps)
    with (
        stop_requests() as stopped,
        prefetched(source, trainer.step, settings.steps, settings.prefetch) as batches,
    ):
        for step, batch in zip(steps, batches, strict=True):
            trainer.advance(batch)
            if stopped():
                break
            if (step + 1) % settings.save_every == 0:
                trainer.save()
    trainer.save()
    return trainer.step


class Trainer:
    """Model, optimiser, moving average and log of one training."""

    def __init__(self, settings: Settings, out: Path) -> None:
        self.settings, self.out, self.step, self.seconds = settings, out, 0, 0.0
        self.model = Miniature(
            settings.geometry,
            video_token_id=settings.video_token_id,
            auxiliary_width=settings.auxiliary_width,
        )
        initialise(self.model, settings.corners, settings.action_start_id, settings.seed)
        self.parameters = dict(self.model.named_parameters())
        self.average = {name: p.detach().clone() for name, p in self.parameters.items()}
        self.optimizers = self._optimizers()
        self.targets = soft_targets(settings.corners, settings.action_start_id)
        self.cross_entropy: Callable[..., tuple[Tensor, Tensor]] = cross_entropy
        self.sums: dict[str, float] = {}
        self.samples = 0
        self._resume()

    def warm_up(self, batches: list[Batch]) -> None:
        """Compile with the first step's batch, so that a resumed run has the same kernels."""
        if self.settings.compile:
            self.model.compile_blocks()
            self.cross_entropy = torch.compile(cross_entropy, dynamic=True)
            self._backward(batches)
            self._zero_grad()
        self.since = time.perf_counter()
        self.samples_since = 0

    def advance(self, batches: list[Batch]) -> None:
        """Take one optimisation step and count it."""
        lr = self.settings.lr(self.step)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = lr
        sums = self._backward(batches)
        norm = torch.nn.utils.clip_grad_norm_(self.parameters.values(), self.settings.clip)
        for optimizer in self.optimizers:
            optimizer.step()
        self._zero_grad()
        self._follow()
        self.step += 1
        samples = sum(len(batch.patches) for batch in batches)
        self.samples += samples
        self.samples_since += samples
        for name, value in {**sums, "grad_norm": float(norm), "steps": 1.0}.items():
            self.sums[name] = self.sums.get(name, 0.0) + value
        if self.step % self.settings.log_every == 0:
            self._log(lr)

    def save(self) -> None:
        """Write the state, then the averaged weights."""
        self._lap()
        state = {
            "fingerprint": self.settings.fingerprint(),
            "step": self.step,
            "samples": self.samples,
            "seconds": self.seconds,
            "sums": self.sums,
            "model": self.model.state_dict(),
            "average": self.average,
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
        }
        write_state(self.out / STATE_FILE, state)
        save_weights(self.model, self.out / WEIGHTS_FILE, self.average)

    def _resume(self) -> None:
        path = self.out / STATE_FILE
        if path.exists():
            state = read_state(path, self.settings.fingerprint())
            self.step, self.samples = state["step"], state["samples"]
            self.seconds, self.sums = state["seconds"], state["sums"]
            self.average = state["average"]
            self.model.load_state_dict(state["model"])
            for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
                optimizer.load_state_dict(saved)
        drop_log_after(self.out / LOG_FILE, self.step)

    def _optimizers(self) -> list[torch.optim.Optimizer]:
        """Muon for the blocks' matrices, AdamW for everything else.

        Muon (Jordan et al. 2024) is given AdamW's step size per value (Liu et al. 2025, section
        2.2), so both share the learning rate. Curves with and without: bench/README.md.
        """
        settings = self.settings
        matrices = {
            n: p for n, p in self.parameters.items() if p.ndim == 2 and n.startswith(MUON_PARTS)
        }
        others = [p for n, p in self.parameters.items() if n not in matrices]
        return [
            torch.optim.Muon(
                list(matrices.values()),
                lr=settings.peak_lr,
                weight_decay=settings.weight_decay,
                adjust_lr_fn="match_rms_adamw",
            ),
            torch.optim.AdamW(
                others, lr=settings.peak_lr, betas=settings.betas, weight_decay=0.0, fused=True
            ),
        ]

    def _zero_grad(self) -> None:
        for optimizer in self.optimizers:
            optimizer.zero_grad()

    def _backward(self, batches: list[Batch]) -> dict[str, float]:
        """Add up the gradients of a step's micro-batches; return what the log averages."""
        weight = max(sum(float(batch.weights.sum()) for batch in batches), 1e-6)
        auxiliary = max(sum(float(batch.auxiliary_weights.sum()) for batch in batches), 1e-6)
        sums: dict[str, float] = {}
        for batch in batches:
            for name, value in self._micro_batch(batch, weight, auxiliary).items():
                sums[name] = sums.get(name, 0.0) + value
        return sums

    def _micro_batch(self, batch: Batch, weight: float, auxiliary: float) -> dict[str, float]:
        features = self.model.encode(torch.from_numpy(batch.patches))
        first = int((batch.predict_from % batch.token_ids.shape[1]).min())
        hidden = self.model.decode(features, batch, first)
        targets = torch.from_numpy(batch.targets)
        soft, hard = self.cross_entropy(
            hidden.flatten(0, 1)[torch.from_numpy(_rows(batch, first))],
            self.model.model.embed_tokens.weight,
            self.targets.ids[targets],
            self.targets.probabilities[targets],
        )
        answers = (soft * torch.from_numpy(batch.weights)).sum() / weight
        seen = (
            auxiliary_loss(
                self.model.auxiliary(features),
                torch.from_numpy(batch.auxiliary),
                torch.from_numpy(batch.auxiliary_weights),
            )
            / auxiliary
        )
        loss = answers + self.settings.auxiliary_weight * seen
        loss.backward()  # type: ignore[no-untyped-call]
        action = targets >= self.settings.action_start_id
        hard = hard.detach()
        return {
            "loss": float(loss.detach()),
            "auxiliary": float(seen.detach()),
            "action": float(hard[action].sum()),
            "actions": int(action.sum()),
            "text": float(hard[~action].sum()),
            "texts": int((~action).sum()),
        }

    @torch.no_grad()
    def _follow(self) -> None:
        """Move the average towards the weights, faster at the start."""
        decay = min(self.settings.ema_decay, (1 + self.step) / (10 + self.step))
        torch._foreach_lerp_(list(self.average.values()), list(self.parameters.values()), 1 - decay)

    def _log(self, lr: float) -> None:
        """Append the means since the last line."""
        sums, steps = self.sums, self.sums["steps"]
        rate = self.samples_since / (time.perf_counter() - self.since)
        self._lap()
        line = {
            "step": self.step,
            "samples": self.samples,
            "lr": lr,
            "loss": sums["loss"] / steps,
            "action_cross_entropy": sums["action"] / max(sums["actions"], 1),
            "text_cross_entropy": sums["text"] / max(sums["texts"], 1),
            "auxiliary": sums["auxiliary"] / steps,
            "grad_norm": sums["grad_norm"] / steps,
            "samples_per_second": round(rate, 2),
            "hours": round(self.seconds / 3600, 5),
        }
        with (self.out / LOG_FILE).open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        self.sums = {}

    def _lap(self) -> None:
        """Add the time since the last lap to the whole training's."""
        now = time.perf_counter()
        self.seconds += now - self.since
        self.since, self.samples_since = now, 0


def _rows(batch: Batch, first: int) -> NDArray[np.int64]:
    """Flat indices of the predicting states where only tokens from `first` on are there."""
    length = batch.token_ids.shape[1]
    sample, token = np.divmod(batch.predict_from, length)
    rows: NDArray[np.int64] = sample * (length - first) + token - first
    return rows


@contextmanager
def stop_requests() -> Iterator[Callable[[], bool]]:
    """Note SIGTERM and SIGINT instead of dying of them; gives a function that says if one came.

    Outside the main thread, where Python allows no handlers, none is ever noted.
    """
    requests: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    signals = (signal.SIGTERM, signal.SIGINT)
    before = [
        signal.signal(number, lambda received, _: requests.append(received)) for number in signals
    ]
    try:
        yield lambda: bool(requests)
    finally:
        for number, handler in zip(signals, before, strict=True):
            signal.signal(number, handler)
