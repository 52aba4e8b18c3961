"""Folded multimodal rotary positions, as TensorRT-LLM's engines take them: one for all requests.

Its `qwen2_vl` engines rotate a prompt by a table that is an input, and count on behind it: the
rotary position of a generated token is its place in the sequence plus a delta. Both are constant
for a fixed camera layout (passes/static_mrope.py). Layout as read in its multimodal_model_runner.py
(`setup_fake_prompts_qwen2vl`):

- `mrope_rotary_cos_sin` float32 [1, positions * head_dim]: for every place in a sequence, and each
  of head_dim/2 frequencies, the cosine and then the sine;
- `mrope_position_deltas` int32 [1, 1].
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from safetensors.numpy import save

from autovla_rt.config import Camera, CompiledPrompt, Geometry
from autovla_rt.export.emit.tables import rotary_positions
from autovla_rt.export.passes.static_mrope import rotary_tables


def emit_mrope(
    geometry: Geometry, prompt: CompiledPrompt, cameras: Sequence[Camera], count: int, folder: Path
) -> None:
    """Write the two inputs, of `count` positions, to mrope.safetensors."""
    positions = rotary_positions(geometry, prompt, cameras, count)
    table = np.stack(rotary_tables(geometry, positions), axis=-1)
    delta = positions[0, -1] - (count - 1)
    inputs = {
        "mrope_rotary_cos_sin": table.reshape(1, -1),
        "mrope_position_deltas": np.array([[delta]], np.int32),
    }
    (folder / "mrope.safetensors").write_bytes(save(inputs))
