"""Tensors of a checkpoint in NumPy, float8 among them, which safetensors does not read there."""

from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors import safe_open


def read_tensors(path: Path) -> dict[str, np.ndarray]:
    """Return every tensor of a safetensors file; skips the test without torch, which reads it."""
    torch = pytest.importorskip("torch")
    tensors = {}
    with safe_open(path, "pt") as file:
        for name in file.keys():  # noqa: SIM118  # it is no dict
            tensor = file.get_tensor(name)
            if tensor.dtype == torch.float8_e4m3fn:
                tensors[name] = tensor.view(torch.uint8).numpy().view(ml_dtypes.float8_e4m3fn)
            else:
                tensors[name] = tensor.numpy()
    return tensors
