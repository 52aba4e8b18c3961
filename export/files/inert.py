"""Inert stand-ins for what training frameworks leave in a checkpoint's pickle beside tensors."""

from __future__ import annotations

import collections
from collections.abc import Callable, Mapping
from pathlib import PurePosixPath, PureWindowsPath
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
    *(
        ("omegaconf.nodes", f"{kind}Node")
        for kind in ("Any", "Boolean", "Bytes", "Enum", "Float", "Integer", "Path", "String")
    ),
    ("yacs.config", "CfgNode"),
)

_OPAQUE = (
    *(("datetime", name) for name in ("date", "datetime", "time", "timedelta", "timezone")),
    ("numpy", "dtype"),
    ("numpy", "ndarray"),
    # NumPy 2 renamed numpy.core to numpy._core: a pickle carries the name of its writer's version.
    *(
        (f"{core}.{module}", name)
        for core in ("numpy.core", "numpy._core")
        for module, name in (
            ("multiarray", "_reconstruct"),
            ("multiarray", "scalar"),
            ("numeric", "_frombuffer"),
        )
    ),
)
"""What is only passed over: an export reads no numbers, dates or times from there."""

_PATHS: Mapping[str, type[PurePosixPath] | type[PureWindowsPath]] = {
    "Path": PurePosixPath,
    "PosixPath": PurePosixPath,
    "PurePath": PurePosixPath,
    "PurePosixPath": PurePosixPath,
    "PureWindowsPath": PureWindowsPath,
    "WindowsPath": PureWindowsPath,
}

_TORCH_DTYPES = (
    *("bfloat16", "float16", "float32", "float64", "float8_e4m3fn", "float8_e5m2"),
    *("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
    *("complex64", "complex128"),
)

# Protocol 2, which torch.save uses, spells the module as Python 2 did.
_BUILTINS = {
    "bool": bool,
    "bytes": bytes,
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


class InertValue:
    """A value that runs nothing and forgets what it is given; `plain` shows its name."""

    def __init__(self, *_: object) -> None: ...

    def __setstate__(self, _: object) -> None: ...


def inert_globals() -> dict[tuple[str, str], Any]:
    """Return a stand-in for every known harmless global, by (module, name) as in the pickle.

    The classes are made anew at each call, because a forged pickle can set attributes on them.
    """
    return {
        ("_codecs", "encode"): lambda *_: "bytes",  # protocol 2 writes bytes as encoded text
        ("collections", "Counter"): dict,
        ("collections", "OrderedDict"): collections.OrderedDict,
        ("collections", "defaultdict"): lambda *_: {},
        ("torch", "Size"): tuple,
        ("torch", "device"): lambda *parts: ":".join(map(str, parts)),
        # Names stand for themselves: a pickle cannot alter a string.
        ("typing", "Any"): "typing.Any",
        **{("torch", name): f"torch.{name}" for name in _TORCH_DTYPES},
        **{("builtins", name): kind for name, kind in _BUILTINS.items()},
        **{("__builtin__", name): kind for name, kind in _BUILTINS.items()},
        **{key: type(key[1], (InertMapping,), {}) for key in _CONTAINERS},
        **{key: type(".".join(key), (InertValue,), {}) for key in _OPAQUE},
        # Python 3.13 moved the classes to pathlib._local, 3.14 back.
        **{
            (module, name): _path_maker(kind)
            for module in ("pathlib", "pathlib._local")
            for name, kind in _PATHS.items()
        },
    }


def plain(value: Any) -> Any:
    """Return `value` with every stand-in replaced by the dict, list or scalar that it held.

    A path is its text, an `InertValue` its name in angle brackets. omegaconf keeps a container's
    items in `_content` and a leaf's value in `_val`; argparse.Namespace keeps its values as state;
    the others are dicts.

    Raises:
        RecursionError: the value contains itself.
    """
    if isinstance(value, InertValue):
        return f"<{type(value).__name__}>"
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


def _path_maker(kind: type[PurePosixPath] | type[PureWindowsPath]) -> Callable[..., str]:
    return lambda *parts: str(kind(*parts))
