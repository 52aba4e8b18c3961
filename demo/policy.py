"""A checkpoint as a policy: its model, and what it chooses among."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from autovla_rt.demo import vision_targets
from autovla_rt.demo.group_batch import GroupBatch
from autovla_rt.demo.model import MASKED, Miniature
from autovla_rt.demo.model_weights import load_folder
from autovla_rt.demo.rollouts import STAGES
from autovla_rt.demo.samples import SampleMaker
from autovla_rt.demo.sft import WEIGHTS_FILE
from autovla_rt.demo.world_engine import model_files
from autovla_rt.export.open_model import open_model
from autovla_rt.runtime.grammar import Grammar, compile_answer
from autovla_rt.runtime.reasoning import Free


@dataclass(frozen=True)
class Policy:
    """What reinforcement needs of a checkpoint.

    Attributes:
        model: In float32.
        positions_of: Gives the M-RoPE positions [3, n] of a sequence.
        masks: See `stage_masks`.
        sha256: Of the file of weights.
    """

    model: Miniature
    positions_of: Callable[[int], NDArray[np.int64]]
    masks: Tensor
    sha256: str


def open_policy(checkpoint: Path) -> Policy:
    """Load a checkpoint in the official layout.

    Raises:
        CheckpointError, CodebookError: a file is missing, damaged or does not fit the others.
    """
    opened = open_model(model_files(checkpoint))
    try:
        geometry, tokenizer, recipe = opened.geometry, opened.tokenizer, opened.recipe
        model = Miniature(
            geometry,
            video_token_id=tokenizer.token_to_id("<|video_pad|>"),
            auxiliary_width=vision_targets.WIDTH,
            dtype=torch.float32,
        )
        load_folder(model, checkpoint / "base")
        grammar = compile_answer(
            tokenizer,
            recipe.answer,
            use_cot=True,
            actions=opened.actions,
            end_token_id=opened.end_token_ids[0],
        )
        return Policy(
            model,
            SampleMaker(tokenizer, opened.codebook, recipe, geometry).positions,
            stage_masks(grammar, geometry.language.vocab_size),
            hashlib.sha256((checkpoint / "base" / WEIGHTS_FILE).read_bytes()).hexdigest(),
        )
    finally:
        opened.checkpoint.close()


def stage_masks(grammar: Grammar, vocabulary: int) -> Tensor:
    """Return what is added to the logits of each of `STAGES`: 0 for its candidates, else `MASKED`.

    Float32 [stages, vocabulary]. `grammar` is that of a checkpoint with chain of thought.
    """
    assert grammar.choice is not None
    (free,) = (segment for segment in grammar.branches["slow"] if isinstance(segment, Free))
    candidates = {
        "decision": np.array([grammar.choice.fast_id, grammar.choice.slow_id]),
        "reasoning": free.legal_ids,
        "action": grammar.action_ids,
    }
    table = torch.full((len(STAGES), vocabulary), MASKED)
    for index, stage in enumerate(STAGES):
        table[index, torch.from_numpy(candidates[stage])] = 0.0
    return table


def choice_logits(model: Miniature, batch: GroupBatch, temperature: float) -> Tensor:
    """Return the logits [N, vocabulary] of every choice of a batch, divided by the temperature."""
    length = batch.token_ids.shape[1]
    row, token = np.divmod(batch.predict_from, length)
    first = int(token.min())
    hidden = model.decode(torch.from_numpy(batch.features), batch, first).flatten(0, 1)
    rows = torch.from_numpy(row * (length - first) + token - first)
    return model.logits(hidden[rows]) / temperature
