"""Memory of engines at the geometry of Qwen2.5-VL-3B with 2,048 action tokens."""

from dataclasses import replace

import pytest
from random_checkpoint import GEOMETRY_3B

from autovla_rt.errors import TargetError
from autovla_rt.export.engine_memory import (
    LANGUAGE,
    RESERVE,
    VISION,
    WORKSPACE,
    check_fits,
    compiler_memory,
    engine_memory,
    memory_told,
)
from autovla_rt.export.formats import read_choice
from autovla_rt.export.targets import TARGETS

BOTH = (VISION, LANGUAGE)
PATCHES = 3 * 2 * 16 * 30
GB = 1e9


def memory(precision="fp16", parts=BOTH, kv_copies=1, kv_capacity=2048, geometry=GEOMETRY_3B):
    return engine_memory(
        geometry,
        read_choice(precision),
        parts=parts,
        patches=PATCHES,
        kv_capacity=kv_capacity,
        kv_copies=kv_copies,
        int4_block=128,
    )


def test_graphs_for_an_old_tensorrt_keep_keys_and_values_twice():
    assert memory(kv_copies=2).total - memory().total == memory().kv


def test_fp16_takes_two_bytes_a_parameter():
    of = memory()
    assert (of.vision / GB, of.language / GB) == pytest.approx((1.34, 6.18), rel=0.01)
    assert of.embeddings == 153713 * 2048 * 2
    assert of.kv == 2 * 36 * 2 * 128 * 2048 * 2
    assert of.activations == 8 * (PATCHES * (1280 + 3420) + 2048 * (2048 + 11008))
    assert of.workspace == WORKSPACE
    assert of.total == sum(
        (of.vision, of.language, of.embeddings, of.kv, of.activations, of.workspace)
    )


@pytest.mark.parametrize(
    ("precision", "share"), [("int8_sq", 1 / 2), ("fp8", 1 / 2), ("fp16/int4_awq", 33 / 128)]
)
def test_fewer_bits_take_their_share(precision, share):
    assert memory(precision).language == pytest.approx(memory().language * share, rel=0.01)


def test_parts_of_a_part_count_by_themselves():
    mixed, plain = memory("fp16/int4_awq,text_head=fp16"), memory("fp16/int4_awq")
    head = 153713 * 2048
    assert mixed.language - plain.language == pytest.approx(head * (2 - 0.5 - 2 / 128), abs=2)
    ends = memory("int8_sq,vision_ends=fp16")
    assert memory("int8_sq").vision < ends.vision < memory("fp16").vision
    assert memory("fp8,kv=fp8").kv == memory("fp8").kv // 2


def test_an_untied_head_counts_once():
    tied = GEOMETRY_3B.language
    untied = GEOMETRY_3B.model_copy(
        update={"language": tied.model_copy(update={"tie_word_embeddings": False})}
    )
    assert memory(geometry=untied) == memory()


def test_a_part_alone_takes_nothing_of_the_other():
    vision, language = memory(parts=[VISION]), memory(parts=[LANGUAGE])
    assert (vision.language, vision.embeddings, vision.kv, language.vision) == (0, 0, 0, 0)
    assert vision.total + language.total == memory().total + WORKSPACE


def test_fp16_does_not_fit_8_gb_and_both_numbers_are_told():
    with pytest.raises(TargetError) as caught:
        check_fits("orin-nano-8", "fp16", memory())
    message = str(caught.value)
    assert "precision fp16 on orin-nano-8: expected an engine of at most 7.0 GiB" in message
    assert "8 GiB less 1.0 that the device keeps" in message
    assert "got about 9.0 GiB (1.2 vision, 5.8 language, 0.6 embeddings, 0.1 kv" in message
    assert "such as fp16/int4_awq" in message


@pytest.mark.parametrize("precision", ["int8_sq", "int4_awq", "fp16/int4_awq", "fp16/int8_sq"])
@pytest.mark.parametrize("target", ["orin-nano-8", "orin-nx-8"])
def test_what_has_at_most_8_bits_for_language_fits_8_gb(target, precision):
    check_fits(target, precision, memory(precision))


@pytest.mark.parametrize("target", [name for name, of in TARGETS.items() if of.memory_gib != 8])
def test_everything_fits_more_than_8_gb_and_nothing_is_refused_where_it_varies(target):
    check_fits(target, "fp16", memory())


def test_keys_and_values_can_be_too_many():
    check_fits("orin-nano-8", "fp16/int4_awq", memory("fp16/int4_awq", kv_capacity=8192))
    with pytest.raises(TargetError, match="or less --kv-capacity"):
        check_fits("orin-nano-8", "fp16/int4_awq", memory("fp16/int4_awq", kv_capacity=65536))


def test_the_limit_is_what_the_device_has_less_what_it_keeps():
    room = (8 << 30) - RESERVE
    of = replace(memory(), vision=0)
    exact = replace(of, vision=room - of.total)
    check_fits("orin-nano-8", "fp16", exact)
    with pytest.raises(TargetError):
        check_fits("orin-nano-8", "fp16", replace(exact, vision=exact.vision + 1))


def test_compiling_takes_three_to_four_bytes_a_parameter_of_the_largest_part():
    parameters = memory(parts=[LANGUAGE]).language / 2
    assert compiler_memory(GEOMETRY_3B, BOTH) == pytest.approx(
        (3 * parameters, 4 * parameters), rel=0.01
    )
    assert compiler_memory(GEOMETRY_3B, [VISION])[0] == pytest.approx(3 * 0.67e9, rel=0.01)


def test_what_is_needed_is_told_beside_what_there_is():
    compiler = compiler_memory(GEOMETRY_3B, BOTH)
    told = memory_told("orin-nano-8", memory("fp16/int4_awq"), compiler, 22 << 30)
    assert told.startswith("memory on orin-nano-8: about 4.7 of 8 GiB; where it is compiled: 8.6")
    assert "to 11.5 GiB, free here: 22.0" in told
    assert told.endswith("Compiling on orin-nano-8 itself needs swap")
    told = memory_told("rtx-sm86", memory("int8_sq"), compiler, None)
    assert told.endswith("about 5.5 GiB; where it is compiled: 8.6 to 11.5 GiB")
    assert "swap" not in memory_told("orin-nx-16", memory(), compiler, None)
