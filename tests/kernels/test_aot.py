"""Kernels compiled without a device: what for, what to, and that a wrong wish is refused."""

import re
from dataclasses import replace

import pytest

from autovla_rt.cubin import read_cubin, read_index
from autovla_rt.errors import TargetError
from autovla_rt.kernels.variants import TOP_COUNTS, variants

pytest.importorskip("triton")

from autovla_rt.kernels.aot import ARCHITECTURES, compile_kernels

MATRIX = {"resize_patchify": r"IMMA\.16832\.S8", "action_head": r"HMMA\.16816\.F32"}
"""Beginning of a kernel's name -> its matrix instruction: int8, and fp16 with sums in fp32."""

WIDE_LOAD = re.compile(r"LDG\S*\.128")


@pytest.fixture(scope="module")
def orin(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cubins") / "sm_87"
    return folder, compile_kernels(folder, 87, variants())


@pytest.mark.slow
def test_every_variant_is_compiled_and_read_back(orin):
    folder, index = orin
    names = [cubin.name for cubin in index.cubins]
    heads = [f"action_head_{of}_top{top}" for of in ("fp16", "int8", "int4") for top in TOP_COUNTS]
    assert names == ["resize_patchify", *heads]
    assert read_index(folder) == index
    for cubin in index.cubins:
        assert read_cubin(folder, cubin)[:4] == b"\x7fELF"


@pytest.mark.slow
def test_nothing_is_spilled_on_orin(orin):
    _, index = orin
    assert [(cubin.spills, cubin.stack_bytes) for cubin in index.cubins] == [(0, 0)] * 7
    assert all(0 < cubin.registers <= 255 for cubin in index.cubins)


@pytest.mark.slow
def test_machine_code_loads_16_bytes_at_once_and_multiplies_matrices(orin):
    _, index = orin
    for cubin in index.cubins:
        assert any(WIDE_LOAD.match(name) for name in cubin.instructions), cubin.instructions
        (wanted,) = (of for start, of in MATRIX.items() if cubin.name.startswith(start))
        assert any(re.match(wanted, name) for name in cubin.instructions), cubin.instructions


@pytest.mark.slow
@pytest.mark.parametrize("sm", [sm for sm in ARCHITECTURES if sm != 87])
def test_other_architectures_compile_without_spills(tmp_path, sm):
    wanted = [of for of in variants() if of.name in ("resize_patchify", "action_head_int4_top8")]
    index = compile_kernels(tmp_path, sm, wanted)
    assert index.sm == sm
    assert [cubin.spills for cubin in index.cubins] == [0, 0]


@pytest.mark.slow
def test_spills_are_found(tmp_path):
    (resize,) = (of for of in variants() if of.kernel == "resize_patchify")
    too_wide = replace(resize, constants=resize.constants | {"BYTE_CHUNK": 128})
    (cubin,) = compile_kernels(tmp_path, 90, [too_wide]).cubins
    assert cubin.spills > 0
    assert cubin.stack_bytes > 0


@pytest.mark.slow
def test_a_model_of_another_shape_is_another_kernel(tmp_path):
    (head,) = (of for of in variants(hidden_size=192, block=64) if of.name.endswith("int4_top1"))
    (cubin,) = compile_kernels(tmp_path, 87, [head]).cubins
    assert (cubin.constants["WIDTH"], cubin.constants["BLOCK"]) == (192, 64)


def test_an_architecture_that_is_not_known_is_refused(tmp_path):
    with pytest.raises(TargetError, match=r"capability 101: .*87 \(Orin\), 110 \(Thor\)"):
        compile_kernels(tmp_path, 101, [])


@pytest.mark.parametrize(("hidden_size", "block"), [(2000, 128), (2048, 96), (2048, 16)])
def test_a_hidden_size_that_is_not_in_blocks_is_refused(hidden_size, block):
    with pytest.raises(TargetError, match="expected whole blocks"):
        variants(hidden_size=hidden_size, block=block)
