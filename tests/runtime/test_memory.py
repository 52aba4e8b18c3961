import pytest

from autovla_rt.bundle import load_bundle
from autovla_rt.errors import MemoryShortageError
from autovla_rt.runtime import memory
from autovla_rt.runtime.memory import WORKING_BYTES, needed_memory
from autovla_rt.runtime.planner import Planner


class Engine:
    """What is looked at of a bundle."""

    def __init__(self, manifest, backend, **sizes):
        records = {n.replace("_bin", ".bin"): type("R", (), {"size": s}) for n, s in sizes.items()}
        self.manifest = manifest.model_copy(update={"backend": backend, "files": records})


@pytest.mark.parametrize("backend", ["ort", "openvino"])
def test_weights_count_with_what_they_take_at_the_peak(demo, backend):
    manifest = load_bundle(demo.engine).manifest
    language = manifest.geometry.language
    cache = 8 * language.num_hidden_layers * language.num_key_value_heads * language.head_dim
    rest = cache * manifest.kv_capacity + WORKING_BYTES
    sizes = {"language_bin": 1000, "vision_bin": 800, "tokenizer": 10**9}
    assert needed_memory(Engine(manifest, backend, **sizes)) == int(1.3 * 1800) + rest


def test_an_engine_that_does_not_fit_is_refused_before_it_is_loaded(demo, monkeypatch, invoke):
    needed = needed_memory(load_bundle(demo.engine))
    monkeypatch.setattr(memory, "free_memory", lambda: needed)
    Planner.load(demo.engine)
    monkeypatch.setattr(memory, "free_memory", lambda: needed - 1)
    monkeypatch.setattr("autovla_rt.ort_session.open_session", None)
    with pytest.raises(MemoryShortageError, match=r"about 0\.3 GiB of free memory, got 0\.3"):
        Planner.load(demo.engine)
    said = invoke.refused(13, "plan", "--frames", "calib_data/demo", "--engine", demo.engine)
    assert "End other programs" in said
