"""Pickled NumPy arrays, read without calling NumPy's own constructors or anything else.

A pickle is a program: it names functions and calls them. The globals that an array needs are
answered here by stand-ins that only record what they are given; the arrays are made afterwards,
from checked parts. So even a crafted array state (an object array, a shape larger than its bytes)
never reaches NumPy.
"""

from __future__ import annotations

import io
import math
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from autovla_rt.errors import AutovlaError, CodebookError
from autovla_rt.export.files.unpickle import RestrictedUnpickler

_NUMBER_CODES: Final = frozenset(
    kind + size
    for kind, sizes in {"b": "1", "i": "1248", "u": "1248", "f": "248"}.items()
    for size in sizes
)


def load_array_pickle(data: bytes) -> Any:
    """Read a pickle of NumPy number arrays in plain containers (protocols 0 to 5).

    Args:
        data: The whole pickle.

    Returns:
        The containers; each array in them is a `PickledArray` (call `to_numpy`), each NumPy scalar
        too (of shape ()). An OrderedDict comes back as a dict.

    Raises:
        CodebookError: The pickle asks for anything else than arrays of numbers and containers, or
            is damaged. Nothing was executed.
    """
    try:
        return RestrictedUnpickler(io.BytesIO(data), _ALLOWED, "refused", CodebookError).load()
    except AutovlaError:
        raise
    # A damaged pickle can fail in any way that Python can: the standard library documents no list.
    except Exception as error:
        raise CodebookError(
            f"not a readable pickle of NumPy arrays ({type(error).__name__}: {error}).\n"
            "Expected the codebook pickle of the training repository, complete."
        ) from error


class _StandIn:
    """Base of what a pickle may construct.

    `__slots__` and `__setstate__` together leave no way to set an attribute from a pickle, neither
    on an instance nor (as the BUILD opcode could) on the class itself.
    """

    __slots__ = ()

    def __setstate__(self, state: object) -> None:
        raise CodebookError(f"the pickle sets attributes of {type(self).__name__}.")


class _Latin1(_StandIn):
    """Stands in for `_codecs.encode`: protocols 0 to 2 write bytes as latin-1 text."""

    def __new__(cls, text: str, encoding: str) -> bytes:  # type: ignore[misc]  # bytes on purpose
        if encoding != "latin1":
            raise CodebookError(f"the pickle asks for the text encoding {encoding!r}, not latin1.")
        return text.encode("latin1")


class _Dtype(_StandIn):
    """Stands in for `numpy.dtype`: a fixed-size number and its byte order."""

    __slots__ = ("_byte_order", "_code")

    def __init__(self, code: str, align: bool = False, copy: bool = True) -> None:
        del align, copy  # positions in NumPy's reduce tuple, without meaning for a plain number
        if code not in _NUMBER_CODES:
            raise CodebookError(
                f"the pickle holds an array of type {code!r}; expected plain numbers.\n"
                "Object arrays are refused because their elements can be anything."
            )
        self._code = code
        self._byte_order = "="

    def __setstate__(self, state: object) -> None:
        match state:
            case (3 | 4, "<" | ">" | "|" | "=" as byte_order, None, None, None, *_):
                self._byte_order = byte_order
            case _:
                raise CodebookError("the pickle holds a structured or unknown NumPy type.")

    def to_numpy(self) -> np.dtype[Any]:
        """Make the NumPy type."""
        return np.dtype(self._byte_order + self._code)


class PickledArray(_StandIn):
    """Stands in for `numpy.ndarray`: shape, type and bytes, not yet checked against each other."""

    __slots__ = ("_dtype", "_order", "_raw", "_shape")

    def __init__(self, subtype: object, shape: object, typecode: object) -> None:
        del subtype, shape, typecode  # `_reconstruct`'s placeholders; the real ones are the state
        self._set((), None, b"", "C")

    def __setstate__(self, state: object) -> None:
        match state:
            case (1, shape, dtype, bool() | 0 | 1 as fortran, raw):
                self._set(shape, dtype, raw, "F" if fortran else "C")
            case _:
                raise CodebookError("the pickle holds a NumPy array state of an unknown version.")

    def _set(self, shape: object, dtype: object, raw: object, order: object) -> None:
        self._shape, self._dtype, self._raw, self._order = shape, dtype, raw, order

    def to_numpy(self) -> NDArray[Any]:
        """Make the array from its parts.

        Raises:
            CodebookError: The parts do not fit together.
        """
        shape, order = self._shape, self._order
        if not isinstance(shape, tuple) or not all(type(n) is int and n >= 0 for n in shape):
            raise CodebookError(f"the pickle holds an array of shape {shape!r}.")
        if not isinstance(self._dtype, _Dtype) or order not in ("C", "F"):
            raise CodebookError("the pickle holds an array without a NumPy type or memory order.")
        dtype, raw = self._dtype.to_numpy(), self._raw
        expected = math.prod(shape) * dtype.itemsize
        if not isinstance(raw, bytes | bytearray) or len(raw) != expected:
            raise CodebookError(
                f"the pickle holds an array {list(shape)} of {dtype} whose data are not the "
                f"{expected} bytes it needs."
            )
        try:
            return np.frombuffer(raw, dtype).reshape(shape, order="F" if order == "F" else "C")
        except (ValueError, OverflowError) as error:  # too many axes, or an axis beyond an int64
            raise CodebookError(
                f"the pickle holds an array that NumPy refuses: {error}."
            ) from error


class _FromBuffer(_StandIn):
    """Stands in for `numpy._core.numeric._frombuffer`, which protocol 5 calls."""

    def __new__(  # type: ignore[misc]  # an array on purpose
        cls, raw: object, dtype: object, shape: object, order: object
    ) -> PickledArray:
        array = PickledArray(None, None, None)
        array._set(shape, dtype, raw, order)
        return array


class _Scalar(_StandIn):
    """Stands in for `numpy.core.multiarray.scalar`."""

    def __new__(cls, dtype: object, raw: object) -> PickledArray:  # type: ignore[misc]
        return _FromBuffer(raw, dtype, (), "C")


_ARRAY_GLOBALS: Final[dict[tuple[str, str], object]] = {
    ("multiarray", "_reconstruct"): PickledArray,
    ("multiarray", "scalar"): _Scalar,
    ("numeric", "_frombuffer"): _FromBuffer,
}

_ALLOWED: Final[dict[tuple[str, str], object]] = {
    # NumPy 2 renamed numpy.core to numpy._core: a pickle carries the name of its writer's version.
    **{
        (f"{core}.{module}", name): stand_in
        for core in ("numpy.core", "numpy._core")
        for (module, name), stand_in in _ARRAY_GLOBALS.items()
    },
    # Only ever an argument of `_reconstruct`, so a name is enough: it cannot be called.
    ("numpy", "ndarray"): "numpy.ndarray",
    ("numpy", "dtype"): _Dtype,
    ("_codecs", "encode"): _Latin1,
    ("collections", "OrderedDict"): dict,
}
