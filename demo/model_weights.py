"""The miniature's weights: where they start, and their names and files in the hub's layout."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from numpy.typing import ArrayLike
from safetensors import SafetensorError
from torch import Tensor, nn

from autovla_rt.demo.model import Miniature
from autovla_rt.errors import CheckpointError
from autovla_rt.export.tensors.model_names import canonical_name, expected_shapes
from autovla_rt.kernels.contour import corners_to_pose
from autovla_rt.output_file import write_file

DEVIATION = 0.02
SHORTEST, LONGEST = 0.1, 8.0
"""Metres over which the action embeddings' waves turn by one radian."""

CORNER_RADIUS = 2.6
"""Metres from a box's centre to its corners: what a radian of heading moves them."""

RESIDUAL = ("o_proj.weight", "attn.proj.weight", "down_proj.weight")
"""Layers that write to a residual stream."""

FUSED = {
    "self_attn.qkv_proj": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "mlp.gate_up_proj": ("mlp.gate_proj", "mlp.up_proj"),
}
"""Products of this project, and the hub's that they join along the outputs."""


def initialise(model: Miniature, corners: ArrayLike, action_start_id: int, seed: int) -> None:
    """Set all weights for training from scratch; equal seeds give equal weights.

    Linear layers are normal with a deviation of 0.02, divided by sqrt(2 * depth) where they write
    to a residual stream (Radford et al., GPT-2, section 2.3). Rows of actions start from random
    Fourier features of their steps (Rahimi and Recht 2007), so that close steps start close.

    Args:
        model: changed in place.
        corners: [K, 4, 2] codebook in metres.
        action_start_id: the first of its K rows in the embedding table.
        seed: of torch's generator.

    Raises:
        ValueError: the actions are not the last K rows.
    """
    generator = torch.Generator().manual_seed(seed)
    depth = {"visual": len(model.visual.blocks), "model": len(model.model.layers)}
    for name, weight in model.named_parameters():
        if name.endswith("bias"):
            nn.init.zeros_(weight)
        elif weight.ndim == 1:
            nn.init.ones_(weight)
        else:
            writes = name.endswith(RESIDUAL)
            shrink = (2 * depth[name.split(".")[0]]) ** -0.5 if writes else 1.0
            nn.init.normal_(weight, std=DEVIATION * shrink, generator=generator)
    table = model.model.embed_tokens.weight
    steps = torch.from_numpy(corners_to_pose(corners)).float()
    if action_start_id + len(steps) != len(table):
        raise ValueError(f"{len(steps)} actions from {action_start_id} on in {len(table)} rows")
    with torch.no_grad():
        table[action_start_id:] = DEVIATION * _waves(steps, table.shape[1], generator)


def _waves(steps: Tensor, width: int, generator: torch.Generator) -> Tensor:
    """Random Fourier features [K, width] with a mean square of 1 of steps [K, 3] (m, m, rad)."""
    reach = np.log(LONGEST / SHORTEST)
    lengths = SHORTEST * torch.exp(reach * torch.rand(width // 2, generator=generator))
    directions = torch.randn(3, width // 2, generator=generator) / lengths
    angles = steps * torch.tensor([1.0, 1.0, CORNER_RADIUS]) @ directions
    return 2**0.5 * torch.cat([angles.cos(), angles.sin()], dim=1)


def to_hub(model: Miniature, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors by the hub's names, from values of the model's parameters by theirs."""
    tensors: dict[str, Tensor] = {}
    shapes = expected_shapes(model.geometry)
    for name, weight in weights.items():
        names = _hub_names(name)
        sizes = [shapes[part][0] for part in names]
        for part, rows in zip(names, torch.split(weight.detach(), sizes), strict=True):
            tensors[part] = rows.reshape(shapes[part]).contiguous()
    return tensors


def from_hub(model: Miniature, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return values of the model's parameters from tensors by the hub's names, in float32."""
    parameters = {name: p for name, p in model.named_parameters() if _is_exported(name)}
    return {
        name: torch.cat([tensors[part].float() for part in _hub_names(name)]).reshape(p.shape)
        for name, p in parameters.items()
    }


def load_folder(model: Miniature, base: Path) -> None:
    """Load `model.safetensors` of a Hugging Face folder; the auxiliary head stays as it is.

    Raises:
        CheckpointError: the file is unreadable, or its tensors are not those of the geometry.
    """
    path = base / "model.safetensors"
    try:
        stored = safetensors.torch.load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"{path}: cannot be read: {error}.\nGive a folder with one safetensors file."
        ) from error
    tensors = {canonical_name(name): tensor for name, tensor in stored.items()}
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    expected = expected_shapes(model.geometry)
    wrong = sorted(name for name in {*found, *expected} if found.get(name) != expected.get(name))
    if wrong:
        details = ", ".join(f"{n}: {found.get(n)}, not {expected.get(n)}" for n in wrong[:5])
        raise CheckpointError(
            f"{path}: {len(wrong)} tensors do not fit the geometry ({details}).\n"
            "Give the folder whose config.json has this geometry."
        )
    model.load_state_dict(from_hub(model, tensors), strict=False)


def save_weights(
    model: Miniature,
    path: Path,
    weights: dict[str, Tensor] | None = None,
    *,
    dtype: torch.dtype = torch.float16,
) -> None:
    """Write safetensors in the hub's layout at once, without the auxiliary head.

    `weights` are values for the model's parameters by name, e.g. their moving average; without
    them the model's own are written.

    Raises:
        StorageError: the file system refused; an existing file stays as it was.
    """
    weights = weights or dict(model.named_parameters())
    exported = {name: weight for name, weight in weights.items() if _is_exported(name)}
    tensors = {name: tensor.to(dtype) for name, tensor in to_hub(model, exported).items()}
    write_file(path, safetensors.torch.save(tensors, metadata={"format": "pt"}))


def _is_exported(name: str) -> bool:
    return not name.startswith("auxiliary.")


def _hub_names(name: str) -> tuple[str, ...]:
    """The hub's tensors that make up one parameter."""
    fused = next((joint for joint in FUSED if f".{joint}." in name), None)
    return (name,) if fused is None else tuple(name.replace(fused, p) for p in FUSED[fused])
