"""The real qwen-vl-utils, beside a torch that has no torchvision."""

import importlib
import sys
import types

NAMES = ("torchvision", "torchvision.io", "torchvision.transforms")


def import_vision_process():
    """Import `qwen_vl_utils.vision_process`, the reference for reading and resizing stills.

    It imports torchvision, which has no build for this torch, but uses none of it for stills. An
    empty stand-in lets the real code be imported, and is removed at once.
    """
    if loaded := sys.modules.get("qwen_vl_utils.vision_process"):
        return loaded
    assert not set(NAMES) & set(sys.modules)
    modules = {name: types.ModuleType(name) for name in NAMES}
    modules["torchvision"].io = modules["torchvision.io"]
    modules["torchvision"].transforms = modules["torchvision.transforms"]
    modules["torchvision.transforms"].InterpolationMode = types.SimpleNamespace(BICUBIC="bicubic")
    sys.modules |= modules
    try:
        return importlib.import_module("qwen_vl_utils.vision_process")
    finally:
        for name in NAMES:
            del sys.modules[name]
