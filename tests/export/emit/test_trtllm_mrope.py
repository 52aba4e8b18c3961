"""The rotary inputs of a TensorRT-LLM engine are the rotary tables of the `ort` engine."""

import numpy as np
import pytest
from safetensors.numpy import load_file

from autovla_rt.bundle import load_bundle
from autovla_rt.export.emit.trtllm_mrope import emit_mrope


@pytest.fixture(scope="module")
def bundle(demo, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield load_bundle(demo.engine)


@pytest.fixture(scope="module")
def inputs(bundle, tmp_path_factory):
    """What a TensorRT-LLM engine of the same cameras is given."""
    manifest, folder = bundle.manifest, tmp_path_factory.mktemp("mrope")
    emit_mrope(manifest.geometry, bundle.prompt(), manifest.cameras, manifest.kv_capacity, folder)
    return load_file(folder / "mrope.safetensors")


def test_the_table_pairs_the_engines_cosines_and_sines(bundle, inputs):
    tables = load_file(bundle.path("rotary.safetensors"))
    capacity, half = bundle.manifest.kv_capacity, bundle.manifest.geometry.language.head_dim // 2
    table = inputs["mrope_rotary_cos_sin"]
    assert (table.dtype, table.shape) == (np.float32, (1, capacity * 2 * half))
    pairs = table.reshape(capacity, half, 2)
    np.testing.assert_array_equal(pairs[..., 0], tables["cos"][:capacity])
    np.testing.assert_array_equal(pairs[..., 1], tables["sin"][:capacity])


def test_behind_the_videos_the_delta_gives_the_position(bundle, inputs):
    """A generated token is rotated by plain rotary embedding at its place plus the delta."""
    tables = load_file(bundle.path("rotary.safetensors"))
    language, last = bundle.manifest.geometry.language, bundle.prompt().videos[-1]
    delta = inputs["mrope_position_deltas"]
    assert (delta.dtype, delta.shape) == (np.int32, (1, 1))
    assert delta[0, 0] < 0  # videos have more tokens than rows, columns or frames
    places = np.arange(last.start + last.count, bundle.manifest.kv_capacity)
    exponent = np.arange(0, language.head_dim, 2) / language.head_dim
    angles = np.outer(places + delta[0, 0], language.rope_theta**-exponent)
    for name, of in (("cos", np.cos), ("sin", np.sin)):
        np.testing.assert_allclose(tables[name][places], of(angles), atol=1e-4)
