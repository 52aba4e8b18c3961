"""Hostile pickles: each would create a file if anything in it ran."""

import os
import pickle
from collections import OrderedDict

import numpy as np
import pytest

from autovla_rt.errors import CodebookError
from autovla_rt.export.files.array_pickle import PickledArray, load_array_pickle

PROTOCOLS = range(6)


class Call:
    """Pickles as a call of `function`."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


class CraftedArray:
    """Pickles as a NumPy array with the given state."""

    def __init__(self, *state):
        self.state = state

    def __reduce__(self):
        reconstruct, args, _ = np.zeros(1).__reduce__()
        return reconstruct, args, self.state


def spelled_call(module, name, argument):
    """Pickle by hand a call of a global that need not exist in this NumPy."""
    return f"c{module}\n{name}\n(V{argument}\ntR.".encode()


@pytest.fixture
def trap(tmp_path):
    return tmp_path / "executed"


def payloads(trap):
    system = Call(os.system, f"touch {trap}")
    evaluate = Call(eval, f"open({str(trap)!r}, 'w').close()")
    number = np.dtype(np.float32)
    return {
        "os.system": system,
        "builtins.eval": evaluate,
        "in token_all": {"token_all": {"veh": system}},
        "as a key": {"token_all": {evaluate: 1}},
        "in an object array": np.array([evaluate], dtype=object),
        "as the data of an array": CraftedArray(1, (1,), number, False, evaluate),
        "as the elements of an array": CraftedArray(1, (1,), np.dtype("O"), False, [evaluate]),
        "as the type of an array": CraftedArray(1, (1,), evaluate, False, b"1234"),
        "as the shape of an array": CraftedArray(1, evaluate, number, False, b"1234"),
        "in a list in a tuple": ([({"x": [system]},)],),
    }


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("name", payloads(""))
def test_a_call_hidden_anywhere_is_refused_and_not_made(name, protocol, trap):
    data = pickle.dumps(payloads(trap)[name], protocol)
    with pytest.raises(CodebookError, match=r"could run code|Object arrays"):
        load_array_pickle(data)
    assert not trap.exists()


@pytest.mark.parametrize("name", ["os.system", "builtins.eval", "in an object array"])
def test_the_payloads_are_real(name, trap):
    pickle.loads(pickle.dumps(payloads(trap)[name]))
    assert trap.exists()


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("numpy.testing", "runstring"),
        ("numpy.testing._private.utils", "runstring"),
        ("numpy.f2py.crackfortran", "myeval"),
        ("numpy.f2py", "compile"),
        ("numpy", "load"),
        ("numpy", "fromfile"),
        ("numpy", "memmap"),
        ("numpy.core.multiarray", "fromfile"),
        ("numpy._core.multiarray", "fromfile"),
        ("numpy", "ndarray.tofile"),
        ("numpy", "dtype.__class__"),
        ("numpy.core.multiarray", "_reconstruct.__globals__"),
        ("posix", "system"),
        ("subprocess", "Popen"),
        ("__builtin__", "eval"),
        ("builtins", "getattr"),
        ("builtins", "__import__"),
        ("pickle", "loads"),
        ("_codecs", "lookup"),
        ("codecs", "encode"),
        ("collections", "namedtuple"),
        ("copyreg", "_reconstructor"),
    ],
)
def test_every_other_global_is_refused(module, name):
    with pytest.raises(CodebookError, match=f"asks for {module}.{name}, which could run code"):
        load_array_pickle(spelled_call(module, name, "x"))
    short = [bytes([0x8C, len(word)]) + word.encode() for word in (module, name)]
    with pytest.raises(CodebookError, match=f"asks for {module}.{name}, which could run code"):
        load_array_pickle(b"\x80\x04" + short[0] + short[1] + b"\x93)R.")


@pytest.mark.parametrize(
    "allowed",
    [
        ("numpy", "ndarray"),
        ("numpy", "dtype"),
        ("numpy._core.multiarray", "_reconstruct"),
        ("numpy._core.multiarray", "scalar"),
        ("numpy._core.numeric", "_frombuffer"),
        ("_codecs", "encode"),
        ("collections", "OrderedDict"),
    ],
)
@pytest.mark.parametrize("state", [b"}Vto_numpy\nVx\ns", b"N}Vto_numpy\nVx\ns\x86"])
def test_a_pickle_cannot_alter_what_it_may_name(allowed, state):
    """BUILD on a class would outlive the load: it could change how the next pickle is read."""
    data = b"\x80\x02c%s\n%s\n" % tuple(word.encode() for word in allowed) + state + b"b."
    with pytest.raises(CodebookError):
        load_array_pickle(data)
    array = load_array_pickle(pickle.dumps(np.ones(2, np.float32)))
    np.testing.assert_array_equal(array.to_numpy(), [1, 1])


def test_only_latin1_of_the_text_encodings_is_followed():
    with pytest.raises(CodebookError, match="'zip_codec'"):
        load_array_pickle(b"c_codecs\nencode\n(Vx\nVzip_codec\ntR.")


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize(
    "array",
    [
        np.arange(12, dtype=np.float32).reshape(3, 4),
        np.asfortranarray(np.arange(12, dtype=np.float64).reshape(3, 4)),
        np.arange(3, dtype=">i4"),
        np.array([True, False]),
        np.array(2.5, np.float16),
        np.array([7, 255], np.uint8),
        np.float32(1.5),
        np.int64(-3),
    ],
)
def test_arrays_of_numbers_survive(array, protocol):
    content = pickle.dumps(OrderedDict(a=[array], b=(1, "x", None)), protocol)
    loaded = load_array_pickle(content)
    assert isinstance(loaded, dict)
    assert loaded["b"] == (1, "x", None)
    result = loaded["a"][0].to_numpy()
    assert result.dtype == array.dtype
    np.testing.assert_array_equal(result, array)


@pytest.mark.parametrize("protocol", range(3))
@pytest.mark.parametrize("module", ["numpy.core.multiarray", "numpy._core.multiarray"])
def test_both_spellings_of_numpy_are_read(module, protocol):
    data = pickle.dumps(np.ones(2, np.float32), protocol)
    assert b"numpy._core.multiarray" in data
    data = data.replace(b"numpy._core.multiarray", module.encode())
    np.testing.assert_array_equal(load_array_pickle(data).to_numpy(), [1, 1])


@pytest.mark.parametrize(
    "array",
    [
        np.array([1, "x", None], dtype=object),
        np.zeros(2, dtype=[("a", "f4"), ("b", "O")]),
        np.array(["text"]),
        np.array([b"bytes"]),
        np.array(["2024-01-01"], dtype="datetime64[D]"),
        np.zeros(2, complex),
    ],
)
def test_arrays_of_anything_but_numbers_are_refused(array):
    with pytest.raises(CodebookError, match=r"expected plain numbers|structured"):
        load_array_pickle(pickle.dumps(array))


class CraftedDtype:
    """Pickles as the NumPy type of `code` with the given state."""

    def __init__(self, code, *state):
        self.code, self.state = code, state

    def __reduce__(self):
        return np.dtype, (self.code, False, True), self.state


@pytest.mark.parametrize(
    "state",
    [
        (3, "<", None, ("a",), {"a": (np.dtype("f4"), 0)}, 4, 1, 16),
        (3, "<", (np.dtype("f4"), (2,)), None, None, 8, 1, 16),
        (3, "O", None, None, None, -1, -1, 0),
        (9, "<", None, None, None, -1, -1, 0),
        (),
    ],
)
def test_number_types_with_a_structure_are_refused(state):
    with pytest.raises(CodebookError, match="structured or unknown NumPy type"):
        load_array_pickle(pickle.dumps(CraftedDtype("f4", *state)))


@pytest.mark.parametrize(
    "state",
    [
        (1, (3,), np.dtype("f4"), False, b"1234"),
        (1, (1 << 40,), np.dtype("f4"), False, b"1234"),
        (1, (-1, -1), np.dtype("f4"), False, b"1234"),
        (1, (1,) * 100, np.dtype("f4"), False, b"1234"),
        (1, (0, 1 << 70), np.dtype("f4"), False, b""),
        (1, (True,), np.dtype("f4"), False, b"1234"),
        (1, [1], np.dtype("f4"), False, b"1234"),
        (1, (1,), "f4", False, b"1234"),
        (1, (1,), np.dtype("f4"), False, "1234"),
        (1, (1,), np.dtype("f4"), False, [1.0]),
        (2, (1,), np.dtype("f4"), False, b"1234"),
        (1, (1,), np.dtype("f4"), 7, b"1234"),
        ((1,), np.dtype("f4"), False, b"1234"),
    ],
)
def test_array_parts_that_do_not_fit_are_refused(state):
    with pytest.raises(CodebookError):
        load_array_pickle(pickle.dumps(CraftedArray(*state))).to_numpy()


def test_every_truncation_is_an_error():
    whole = pickle.dumps({"veh": np.ones((2, 4), np.float32)})
    for length in range(len(whole)):
        with pytest.raises(CodebookError):
            load_array_pickle(whole[:length])


@pytest.mark.parametrize(
    "data",
    [
        b"PK\x03\x04",
        b"not a pickle",
        b"\x80\x02\x82\x01.",  # EXT1
        b"\x80\x05\x97.",  # NEXT_BUFFER
        b"Pid\n.",  # PERSID
        b"(ios\nsystem\n.",  # INST
        b"cnumpy\nndarray\n)R.",  # a call of what only stands for a name
    ],
)
def test_other_bytes_are_an_error(data):
    with pytest.raises(CodebookError):
        load_array_pickle(data)


def test_nothing_of_numpy_is_constructed_while_loading():
    loaded = load_array_pickle(pickle.dumps(np.ones(2)))
    assert type(loaded) is PickledArray
