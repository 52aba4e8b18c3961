"""Triton's interpreter, in a process of its own: it is chosen when Triton is first imported."""

import importlib
import os
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context

from autovla_rt.kernels.variants import variants


@contextmanager
def triton_interpreter():
    """Yield a function that runs launches, each specialised for a model of some shape."""
    os.environ["TRITON_INTERPRET"] = "1"
    try:
        with ProcessPoolExecutor(1, get_context("spawn")) as pool:
            yield lambda case, **model: pool.submit(_interpret, case, model).result()
    finally:
        del os.environ["TRITON_INTERPRET"]


def _interpret(case, model):
    import torch

    (variant,) = (of for of in variants(**model) if of.name == case.name)
    module = importlib.import_module(f"autovla_rt.kernels.triton_{variant.kernel}")
    tensors = {name: torch.from_numpy(array) for name, array in case.arrays.items()}
    given = {**tensors, **case.numbers, **variant.constants}
    getattr(module, variant.kernel)[case.programs](**given)
    return {name: tensors[name].numpy() for name in case.outputs}
