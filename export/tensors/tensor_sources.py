"""Where each of the model's tensors lies in a store, and whether exactly these are there."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import ml_dtypes
import numpy as np

from autovla_rt.config import Geometry
from autovla_rt.errors import CheckpointError
from autovla_rt.export.tensors.lora import (
    A_SUFFIX,
    ALPHA_HINT,
    B_SUFFIX,
    BASE_SUFFIX,
    LoraPair,
    LoraSettings,
    adapted_modules,
)
from autovla_rt.export.tensors.model_names import (
    EMBEDDING,
    IGNORED,
    LM_HEAD,
    canonical_name,
    expected_shapes,
)
from autovla_rt.export.tensors.tensor_info import TensorStore

WEIGHT_DTYPES = (np.dtype(np.float32), np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16))

_MAX_LISTED = 20
_COMPARE_BYTES = 4 << 20


@dataclass(frozen=True)
class Source:
    """Where a canonical tensor comes from: its stored name, and a LoRA pair to merge."""

    stored: str
    lora: LoraPair | None = None


Sources = dict[str, Source]


def capped(lines: Sequence[str], separator: str = "\n") -> str:
    """Join at most 20 lines and count the rest."""
    rest = len(lines) - _MAX_LISTED
    return separator.join([*lines[:_MAX_LISTED], *([f"... and {rest} more"] if rest > 0 else [])])


def locate(path: Path, store: TensorStore, lora: LoraSettings | None) -> Sources:
    """Map canonical names to stored ones; a LoRA layer becomes one source with its pair.

    Raises:
        CheckpointError: two stored tensors mean the same one, a LoRA layer lacks a part or has
            parts of other shapes, or `lora` is missing.
    """
    stored_by_name = _by_canonical_name(path, store)
    modules = adapted_modules(stored_by_name)
    if modules and lora is None:
        raise CheckpointError(
            f"{path}: {len(modules)} layers hold LoRA weights, but nothing says their alpha. "
            f"{ALPHA_HINT}"
        )
    pairs: dict[str, LoraPair] = {}
    problems: list[str] = []
    for module in modules:
        assert lora is not None
        parts = {
            suffix: stored_by_name.pop(module + suffix)
            for suffix in (A_SUFFIX, B_SUFFIX)
            if module + suffix in stored_by_name
        }
        base = stored_by_name.get(module + BASE_SUFFIX)
        if base is None or len(parts) < 2:
            found = [BASE_SUFFIX] * (base is not None) + list(parts)
            problems.append(f"{module}: only {', '.join(found)}")
            continue
        a, b = parts[A_SUFFIX], parts[B_SUFFIX]
        problems += _pair_problems(store, module, base, a, b)
        rank = max((*store.infos[a].shape, 1)[0], 1)
        pairs[f"{module}.weight"] = LoraPair(a, b, lora.alpha / rank)
    if problems:
        raise CheckpointError(
            f"{path}: LoRA layers that cannot be merged:\n{capped(problems)}\n"
            f"Expected {BASE_SUFFIX} [out, in], {A_SUFFIX} [r, in] and {B_SUFFIX} [out, r] each."
        )
    return _without_base_layers(path, stored_by_name, pairs)


def verify(path: Path, store: TensorStore, sources: Sources, geometry: Geometry) -> None:
    """Refuse anything but exactly the tensors of `geometry`; a tied model may store its head.

    Raises:
        CheckpointError: lists the tensors that are missing, left over, or of another shape or
            type; or a stored head of a tied model is not the embedding.
    """
    expected = expected_shapes(geometry)
    tied = geometry.language.tie_word_embeddings
    allowed = {**expected, LM_HEAD: expected[EMBEDDING]} if tied else expected
    problems = {
        "missing": [
            f"{name} {list(shape)}" for name, shape in expected.items() if name not in sources
        ],
        "left over": [],
        "unfit": [],
    }
    for name, source in sources.items():
        info = store.infos[source.stored]
        described = f"{source.stored} {list(info.shape)} {info.dtype}"
        if name not in allowed:
            problems["left over"].append(described)
        elif info.shape != allowed[name]:
            problems["unfit"].append(f"{described}, expected shape {list(allowed[name])}")
        elif info.dtype not in WEIGHT_DTYPES:
            types = ", ".join(map(str, WEIGHT_DTYPES))
            problems["unfit"].append(f"{described}, expected type {types}")
    if any(problems.values()):
        lists = "\n".join(
            f"{kind} ({len(lines)}):\n{capped(lines)}" for kind, lines in problems.items() if lines
        )
        raise CheckpointError(
            f"{path}: expected the {len(expected)} tensors that config.json describes, "
            f"found {len(sources)}.\n{lists}\n"
            "Check that checkpoint and base folder belong together. Nothing is skipped or guessed."
        )
    if tied and LM_HEAD in sources:
        _check_tied_head(path, store, sources[EMBEDDING].stored, sources[LM_HEAD].stored)


def _by_canonical_name(path: Path, store: TensorStore) -> dict[str, str]:
    stored: dict[str, list[str]] = defaultdict(list)
    for name in store.infos:
        if name not in IGNORED:
            stored[canonical_name(name)].append(name)
    _refuse_doubles(path, stored)
    return {name: doubles[0] for name, doubles in stored.items()}


def _without_base_layers(
    path: Path, stored_by_name: dict[str, str], pairs: dict[str, LoraPair]
) -> Sources:
    """Give a LoRA layer's frozen weight and bias the names that they have without LoRA."""
    stored: dict[str, list[str]] = defaultdict(list)
    for name, original in stored_by_name.items():
        stored[name.replace(".base_layer.", ".")].append(original)
    _refuse_doubles(path, stored)
    return {name: Source(doubles[0], pairs.get(name)) for name, doubles in stored.items()}


def _refuse_doubles(path: Path, stored: dict[str, list[str]]) -> None:
    if doubled := [f"{name}: {', '.join(names)}" for name, names in stored.items() if names[1:]]:
        raise CheckpointError(
            f"{path}: several stored tensors mean the same one:\n{capped(doubled)}\n"
            "Keep one layout in the file."
        )


def _pair_problems(store: TensorStore, module: str, base: str, a: str, b: str) -> list[str]:
    base_shape, a_shape, b_shape = (store.infos[name].shape for name in (base, a, b))
    if len(base_shape) == 2 and len(a_shape) == 2 and a_shape[0] >= 1:
        outputs, inputs = base_shape
        if a_shape == (a_shape[0], inputs) and b_shape == (outputs, a_shape[0]):
            types = {store.infos[name].dtype for name in (a, b)}
            unknown = sorted(map(str, types - set(WEIGHT_DTYPES)))
            return [f"{module}: adapter of type {', '.join(unknown)}"] if unknown else []
    return [f"{module}: base {list(base_shape)}, A {list(a_shape)}, B {list(b_shape)}"]


def _check_tied_head(path: Path, store: TensorStore, embedding: str, head: str) -> None:
    """Compare the two tables byte for byte, a few MB at a time."""
    if store.same_bytes(embedding, head):
        return
    info, head_info = store.infos[embedding], store.infos[head]
    if info.dtype != head_info.dtype:
        raise _untied(path, f"the types differ: {info.dtype} and {head_info.dtype}")
    rows = info.shape[0]
    step = max(1, _COMPARE_BYTES * rows // info.num_bytes)
    for start in range(0, rows, step):
        stop = min(start + step, rows)
        left = store.read_rows(embedding, start, stop).view(np.uint8)
        right = store.read_rows(head, start, stop).view(np.uint8)
        if not np.array_equal(left, right):
            first = start + int(np.argmax((left != right).any(axis=1)))
            raise _untied(path, f"row {first} is the first that differs")


def _untied(path: Path, difference: str) -> CheckpointError:
    return CheckpointError(
        f"{path}: config.json says tie_word_embeddings, but {LM_HEAD} is not {EMBEDDING} "
        f"({difference}).\nIf the head was trained on its own, set tie_word_embeddings to false "
        "in the base folder's config.json; otherwise the checkpoint is damaged."
    )
