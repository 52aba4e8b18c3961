import pytest

from autovla_rt.ort_session import int8_kernels_saturate


@pytest.mark.parametrize(
    ("cpuinfo", "saturate"),
    [
        ("processor\t: 0\nflags\t\t: fpu sse4_2 avx avx2 fma\n", True),
        ("processor\t: 0\nflags\t\t: avx2 avx512f avx512_vnni amx_int8\n", False),
        ("processor\t: 0\nflags\t\t: avx2 avx_vnni\n", False),
        ("processor\t: 0\nFeatures\t: fp asimd asimddp i8mm\n", False),
        ("", False),
    ],
    ids=["avx2", "avx512_vnni", "avx_vnni", "arm", "unknown"],
)
def test_only_x86_without_vnni_saturates(cpuinfo, saturate):
    assert int8_kernels_saturate(cpuinfo) is saturate
