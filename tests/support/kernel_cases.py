"""Inputs of the GPU kernels and what their references make of them, for interpreter and device."""

from dataclasses import dataclass, field

import numpy as np

from autovla_rt.config import Preprocessing, VisionGeometry
from autovla_rt.kernels import action_layout
from autovla_rt.kernels.action_head import best_actions
from autovla_rt.kernels.action_layout import dequantize, pack_int4, pack_mask
from autovla_rt.kernels.patchify import patchify
from autovla_rt.kernels.resample import resample
from autovla_rt.kernels.resize_plan import level_values, plan_resize
from autovla_rt.kernels.variants import head_name

TOLERANCE = 1e-5
"""Of a logit, as a share of the sum of its products' magnitudes: fp32 sums in any order."""

VISION = VisionGeometry(
    depth=1,
    hidden_size=64,
    num_heads=1,
    intermediate_size=64,
    out_hidden_size=64,
    fullatt_block_indexes=(0,),
)
PREPROCESSING = Preprocessing()


@dataclass
class Launch:
    """One launch: arrays go to the device, `outputs` of them come back."""

    name: str
    programs: tuple[int, int, int]
    arrays: dict[str, np.ndarray]
    numbers: dict[str, int]
    outputs: tuple[str, ...]
    expected: dict[str, np.ndarray] = field(default_factory=dict)
    magnitudes: np.ndarray | None = None


def resize_case(size, resized, frames=2, *, contrast="noise", dtype=np.float16):
    """Frames of `size` (height, width) that become patches of `resized`."""
    rng = np.random.default_rng(size[0] * 31 + size[1])
    pixels = rng.integers(0, 256, (frames, *size, 3), dtype=np.uint8)
    if contrast == "extremes":
        pixels = (pixels > 127).astype(np.uint8) * 255
    plan = plan_resize(size, resized)
    expected = patchify(resample(pixels, resized), PREPROCESSING, VISION).astype(dtype)
    return Launch(
        "resize_patchify",
        plan.grid(frames),
        {
            "frames": plan.pitched(pixels),
            **plan.tables,
            "values": level_values(PREPROCESSING, VISION).astype(dtype),
            "patches": np.full_like(expected, np.nan),
        },
        plan.sizes,
        ("patches",),
        {"patches": expected},
    )


def head_case(weights, rows, actions, top=1, *, width=2048, block=128, change=None):
    """An action head over random states, weights and masks; `change` may alter them first."""
    rng = np.random.default_rng(rows * 7919 + actions)
    given = {
        "hidden": rng.standard_normal((rows, width)).astype(np.float16),
        "allowed": rng.random((rows, actions)) < 0.7,
        **_weights(rng, weights, actions, width, block),
    }
    if change:
        change(given)
    stored, values = _stored(weights, given, block)
    hidden = given["hidden"].astype(np.float64)
    with np.errstate(invalid="ignore"):
        logits = hidden @ values.T.astype(np.float64)
        magnitudes = np.abs(hidden) @ np.abs(values.T.astype(np.float64))
    logits[~given["allowed"]] = -np.inf
    return Launch(
        head_name(weights, top),
        (action_layout.programs(actions), 1, 1),
        {
            "hidden": given["hidden"],
            "weight": stored,
            "scales": given["scales"],
            "allowed": pack_mask(given["allowed"]),
            "logits": np.full((rows, actions), np.nan, np.float32),
            "partial": np.full(action_layout.scratch_shape(actions, top), -1, np.int64),
            "arrived": np.zeros(1, np.int32),
            "best_ids": np.full((rows, top), -7, np.int32),
            "best_logits": np.full((rows, top), np.nan, np.float32),
        },
        {"rows": rows, "actions": actions},
        ("logits", "best_ids", "best_logits", "arrived"),
        {"logits": logits},
        magnitudes,
    )


def check_head(case, found, top):
    """Logits near the reference; the best are exactly those of these logits; ready for another."""
    wanted, got = case.expected["logits"], found["logits"]
    known = np.isfinite(wanted)
    assert (got[np.isneginf(wanted)] == -np.inf).all()
    assert np.isnan(got[np.isnan(wanted)]).all()
    assert (np.abs(got[known] - wanted[known]) <= TOLERANCE * case.magnitudes[known]).all()
    ids, best = best_actions(got, ~np.isneginf(wanted), top)
    np.testing.assert_array_equal(found["best_ids"], ids)
    np.testing.assert_array_equal(found["best_logits"], best)
    assert found["arrived"] == 0


def _weights(rng, weights, actions, width, block):
    if weights == "fp16":
        values = rng.standard_normal((actions, width)).astype(np.float16)
        return {"codes": values, "scales": np.ones(1, np.float32)}
    low, high, shape = {
        "int8": (-128, 127, (actions,)),
        "int4": (-8, 7, (actions, width // block)),
    }[weights]
    return {
        "codes": rng.integers(low, high + 1, (actions, width)).astype(np.int8),
        "scales": (rng.random(shape) * 0.02 - 0.005).astype(np.float32),
    }


def _stored(weights, given, block):
    """Weights as the kernel reads them, and their values."""
    if weights == "fp16":
        return given["codes"], given["codes"]
    codes = given["codes"]
    stored = pack_int4(codes, block) if weights == "int4" else codes
    return stored, dequantize(codes, given["scales"])


def _nothing_is_allowed(given):
    given["allowed"][-1] = False


def _one_is_allowed(given):
    given["allowed"][0] = False
    given["allowed"][0, -1] = True


def _all_are_equal(given):
    given["codes"][:] = given["codes"][0]
    if given["scales"].size > 1:
        given["scales"][:] = given["scales"][0]


def _states_are_zero(given):
    given["hidden"][:] = 0
    given["hidden"][0, 0] = -0.0


def _a_state_is_nan(given):
    given["hidden"][0, 3] = np.nan


EDGES = (
    _nothing_is_allowed,
    _one_is_allowed,
    _all_are_equal,
    _states_are_zero,
    _a_state_is_nan,
)
"""Changes to the inputs of an action head."""
