"""The ledger counts the graphs as their geometry says."""

import ledger
import pytest

from autovla_rt.bundle import load_bundle


@pytest.fixture(scope="module")
def bundle(demo):
    return load_bundle(demo.engine)


@pytest.fixture(scope="module")
def costs(bundle):
    return ledger.Costs(bundle)


def test_a_language_models_matrices_are_those_of_its_layers(bundle, costs):
    of = bundle.manifest.geometry.language
    heads, kv_heads, dim = of.num_attention_heads, of.num_key_value_heads, of.head_dim
    qkv = of.hidden_size * (heads + 2 * kv_heads) * dim
    behind = heads * dim * of.hidden_size + 3 * of.hidden_size * of.intermediate_size
    assert costs.language.elements == of.num_hidden_layers * qkv + (
        (of.num_hidden_layers - 1) * behind
    )
    assert costs.language.read_elements == behind
    assert costs.text_head.elements == of.hidden_size * bundle.manifest.actions.action_start_id


def test_a_towers_matrices_are_those_of_its_blocks_and_a_quarter_of_the_mergers(bundle, costs):
    of = bundle.manifest.geometry.vision
    block = of.hidden_size * (4 * of.hidden_size + 3 * of.intermediate_size)
    wide = 4 * of.hidden_size
    merger = wide * (wide + of.out_hidden_size) // 4
    (counted,) = costs.vision.values()
    assert counted.elements == of.patch_width * of.hidden_size + of.depth * block + merger


def test_weights_are_those_of_the_files(bundle, costs):
    size = bundle.path("language.bin").stat().st_size
    assert costs.language.weight_bytes == pytest.approx(size, rel=0.01)


def test_attention_counts_what_each_row_sees(costs):
    of = costs.language_geometry
    each = 4 * of.num_hidden_layers * of.num_attention_heads * of.head_dim
    alone = costs.pass_flops(1, 9, 1)
    linear = 2 * (costs.language.elements + costs.language.read_elements)
    assert alone == linear + each * 10
    assert costs.pass_flops(3, 9, 1) - costs.pass_flops(3, 0, 1) == 3 * 9 * each
    assert costs.pass_flops(3, 0, 3) == 3 * linear + each * (1 + 2 + 3)


def test_the_official_decoder_does_everything_anew(bundle, costs):
    counted = ledger.official(costs, bundle, 244, 34)
    assert (counted.passes, counted.rows, counted.patches) == (35, 244 + 34, 6 * 8 * 14)
    assert counted.weight_bytes["language"] == 35 * 2 * (
        costs.language.elements + costs.language.read_elements
    )


def test_autovlas_prompt_is_counted_without_being_run(bundle, costs):
    counted = ledger.specialised(costs, bundle, 7)
    assert (counted.prefill_tokens, counted.passes) == (833, 7)
    assert counted.patches == 3 * 8 * 14
    assert counted.weight_bytes["language"] == 7 * costs.language.weight_bytes
    assert counted.rows == 833 + 45 + 6 * 10


def test_ours_are_counted_as_they_run(bundle, capsys, monkeypatch):
    import json
    import sys

    monkeypatch.setattr(sys, "argv", ["ledger", str(bundle.folder), "--ticks", "4"])
    ledger.main()
    table = json.loads(capsys.readouterr().out)
    official, first, steady = table["official"], table["first"], table["steady"]
    assert steady["patches"] * 2 == first["patches"] == official["patches"]
    assert first["prefill_tokens"] < official["prefill_tokens"] == table["prompt tokens"]
    assert steady["passes"] < official["passes"]
    assert steady["weight_bytes"]["language"] % steady["passes"] == 0
