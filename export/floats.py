"""Numbers in a float type that may be too small for them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from autovla_rt.errors import CheckpointError


def fitting(name: str, values: NDArray[np.float32], dtype: str) -> NDArray[np.floating]:
    """Return a tensor's values in float32 or float16.

    Raises:
        CheckpointError: one is beyond the type's largest number.
    """
    limit = np.finfo(np.dtype(dtype)).max
    largest = np.abs(values).max(initial=0)
    if largest > limit:
        raise CheckpointError(
            f"{name}: expected values that fit {dtype}, got {largest:g}. Build with --precision "
            "fp32 (--target cpu has it), or check how the checkpoint was written."
        )
    return values.astype(dtype)
