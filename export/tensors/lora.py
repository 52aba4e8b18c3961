"""LoRA: its settings as AutoVLA's configs spell them, its tensor names, and the merge.

W' = W + (alpha / r) B A (Hu et al. 2021, "LoRA", section 4.1; names as PEFT stores them).
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autovla_rt.errors import CheckpointError

ALPHA_HINT = (
    "Give a training config with model.lora.use and model.lora.alpha "
    "(agent configs: use_lora and lora_alpha)."
)

_SHORT = ("use", "alpha", "dropout")
_LONG = ("use_lora", "lora_alpha", "lora_dropout")
"""The switch, the numerator of the scaling, and the key that only tells a LoRA section apart."""

# The short keys are anybody's (a focal loss has an alpha, too), so the section's name must tell.
_LORA_SECTION = re.compile("(?<!exp)lora", re.IGNORECASE)  # not "exploration"

BASE_SUFFIX = ".base_layer.weight"
A_SUFFIX = ".lora_A.default.weight"
B_SUFFIX = ".lora_B.default.weight"


@dataclass(frozen=True)
class LoraSettings:
    """What the weights do not say: the numerator of the scaling alpha / r."""

    alpha: float


@dataclass(frozen=True)
class LoraPair:
    """Stored names of A [r, in] and B [out, r] and their scaling alpha / r."""

    a: str
    b: str
    scaling: float


def adapted_modules(names: Iterable[str]) -> list[str]:
    """Return, in order and once each, the modules that hold a frozen base or half an adapter."""
    suffixes = (BASE_SUFFIX, A_SUFFIX, B_SUFFIX)
    return list(
        dict.fromkeys(
            name.removesuffix(suffix)
            for name in names
            for suffix in suffixes
            if name.endswith(suffix)
        )
    )


def find_lora_settings(tree: Any, source: str) -> LoraSettings | None:
    """Return the LoRA settings anywhere in a tree of mappings, None where there are none.

    use/alpha count only in a section named after LoRA, use_lora/lora_alpha in any.

    Raises:
        CheckpointError: two sections disagree, or one is incomplete.
    """
    found = {settings for settings in _walk(tree, source) if settings is not None}
    if len(found) > 1:
        raise CheckpointError(
            f"{source}: LoRA sections disagree: alpha {sorted(s.alpha for s in found)}. "
            "Keep one of them."
        )
    return found.pop() if found else None


def merge_lora(
    base: NDArray[Any], a: NDArray[Any], b: NDArray[Any], scaling: float
) -> NDArray[np.float32]:
    """Return base + scaling * b @ a in float32; shapes [rows, in], [r, in], [rows, r]."""
    delta = b.astype(np.float32) @ a.astype(np.float32)
    delta *= np.float32(scaling)
    delta += base.astype(np.float32)
    return delta


def _read(
    section: Mapping[str, Any], spelling: tuple[str, str, str], source: str
) -> LoraSettings | None:
    """Return the settings in one section, None where LoRA is off."""
    use, alpha, _ = spelling
    if section.get(use) is not True:
        return None
    value = section.get(alpha)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        value = math.nan
    if not 0 < value < math.inf:
        raise CheckpointError(
            f"{source}: {use} is true, but {alpha} is {section.get(alpha)!r}; expected a "
            f"positive number. {ALPHA_HINT}"
        )
    return LoraSettings(float(value))


def _walk(tree: Any, source: str, name: str = "") -> Iterator[LoraSettings | None]:
    if not isinstance(tree, Mapping):
        return
    for spelling in (_SHORT, _LONG) if _LORA_SECTION.search(name) else (_LONG,):
        use, alpha, other = spelling
        if use in tree and (alpha in tree or other in tree):
            yield _read(tree, spelling, source)
    for key, value in tree.items():
        yield from _walk(value, source, str(key))
