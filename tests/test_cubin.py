import hashlib

import pytest

from autovla_rt.cubin import INDEX_FILE, Argument, Cubin, CubinIndex, read_cubin, read_index
from autovla_rt.errors import BundleError

CODE = b"\x7fELF machine code"
CUBIN = Cubin(
    name="double",
    entry="double",
    sha256=hashlib.sha256(CODE).hexdigest(),
    warps=4,
    shared_bytes=0,
    arguments=(Argument(name="x", kind="pointer", type="float16", multiple=16),),
    hidden_pointers=2,
    constants={},
    registers=16,
    stack_bytes=0,
    spills=0,
    instructions={},
)


@pytest.fixture
def folder(tmp_path):
    index = CubinIndex(sm=87, compiler="triton 3.9.0", cubins=(CUBIN,))
    (tmp_path / INDEX_FILE).write_text(index.model_dump_json())
    (tmp_path / CUBIN.file).write_bytes(CODE)
    return tmp_path


def test_what_was_written_is_read(folder):
    index = read_index(folder)
    assert index.find("double") == CUBIN
    assert index.find("double").threads == 128
    assert read_cubin(folder, CUBIN) == CODE


def test_a_kernel_that_is_not_there_is_named_with_those_that_are(folder):
    with pytest.raises(BundleError, match="kernel 'triple': expected one of double"):
        read_index(folder).find("triple")


@pytest.mark.parametrize("content", [None, b"", b"{}", b'{"schema_version": 2}'])
def test_an_index_of_another_kind_is_refused(folder, content):
    if content is None:
        (folder / INDEX_FILE).unlink()
    else:
        (folder / INDEX_FILE).write_bytes(content)
    with pytest.raises(BundleError, match=r"cubins\.json: expected an index"):
        read_index(folder)


def test_altered_machine_code_is_refused(folder):
    (folder / CUBIN.file).write_bytes(CODE + b"\0")
    with pytest.raises(BundleError, match=r"double\.cubin: expected sha256 .*, got"):
        read_cubin(folder, CUBIN)


def test_missing_machine_code_is_named(folder):
    (folder / CUBIN.file).unlink()
    with pytest.raises(BundleError, match=r"double\.cubin: cannot be read"):
        read_cubin(folder, CUBIN)
