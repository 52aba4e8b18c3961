"""Inert stand-ins for the containers that training frameworks leave in a checkpoint's pickle."""

from __future__ import annotations

import collections
from collections.abc import Mapping
from typing import Any

_CONTAINERS = (
    ("argparse", "Namespace"),
    ("lightning.fabric.utilities.data", "AttributeDict"),
    ("lightning.pytorch.utilities.parsing", "AttributeDict"),
    ("lightning_fabric.utilities.data", "AttributeDict"),
    ("pytorch_lightning.utilities.parsing", "AttributeDict"),
    ("omegaconf.base", "ContainerMetadata"),
    ("omegaconf.base", "Metadata"),
    ("omegaconf.dictconfig", "DictConfig"),
    ("omegaconf.listconfig", "ListConfig"),
    ("omegaconf.nodes", "AnyNode"),
    ("yacs.config", "CfgNode"),
)

# Protocol 2, which torch.save uses, spells the module as Python 2 did.
_BUILTINS = {
    "bool": bool,
    "dict": dict,
    "float": float,
    "int": int,
    "list": list,
    "long": int,
    "set": set,
    "str": str,
    "tuple": tuple,
    "unicode": str,
}


class InertMapping(dict[Any, Any]):
    """A dict that runs nothing: it swallows constructor arguments and keeps the pickled state."""

    def __init__(self, *_: object) -> None:
        super().__init__()

    def __setstate__(self, state: Any) -> None:
        self.state = state

    state: Any = None


def inert_globals() -> dict[tuple[str, str], Any]:
    """Return a stand-in for every known container, by (module, name) as in the pickle.

    The classes are made anew at each call, because a forged pickle can set attributes on them.
    """
    return {
        ("collections", "OrderedDict"): collections.OrderedDict,
        ("collections", "defaultdict"): lambda *_: {},
        ("typing", "Any"): "typing.Any",
        **{("builtins", name): kind for name, kind in _BUILTINS.items()},
        **{("__builtin__", name): kind for name, kind in _BUILTINS.items()},
        **{key: type(key[1], (InertMapping,), {}) for key in _CONTAINERS},
    }


def plain(value: Any) -> Any:
    """Return `value` with every stand-in replaced by the dict, list or scalar that it held.

    omegaconf keeps a container's items in `_content` and a leaf's value in `_val`;
    argparse.Namespace keeps its values as state; the others are dicts.

    Raises:
        RecursionError: the value contains itself.
    """
    if isinstance(value, InertMapping) and isinstance(value.state, Mapping):
        for key in ("_content", "_val"):
            if key in value.state:
                return plain(value.state[key])
        value = {**value, **value.state}
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return value
