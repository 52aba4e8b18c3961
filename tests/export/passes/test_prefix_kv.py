"""The prefix's keys and values are what the engine computes, and no other engine's are taken."""

import shutil

import numpy as np
import pytest
from demo_engine import FRAMES, make_demo
from safetensors.numpy import load_file, save

from autovla_rt.bundle import load_bundle
from autovla_rt.demo.world_engine import build_world_engine
from autovla_rt.errors import BundleError
from autovla_rt.prefix import BINDING, PREFIX_FILE, prefix_length, read_prefix
from autovla_rt.runtime.engines import open_engines
from autovla_rt.runtime.planner import Planner
from autovla_rt.runtime.scene import read_frames_dir

PLAIN = "fp32", "int8", "int4"
ENGINES = [
    (precision, target) for target in ("cpu", "x86") for precision in ("fp32", "int8", "int4")
]


@pytest.fixture(scope="module", params=ENGINES, ids="-".join)
def bundle(request, tmp_path_factory):
    demo = make_demo(tmp_path_factory.getbasetemp())
    folder = tmp_path_factory.mktemp("prefix") / "engine"
    build_world_engine(demo.base.parent, folder, *request.param)
    return load_bundle(folder)


def open_language(bundle, *, use_prefix=True):
    return open_engines(bundle, 1, use_prefix=use_prefix)[1]


def prompt_embeddings(engine, bundle):
    return engine.embed(np.array(bundle.prompt().prefix_ids, np.int64))


def test_the_prefix_is_all_text_before_the_first_camera_but_an_odd_id(bundle):
    prompt = bundle.prompt()
    length = prefix_length(prompt)
    first = min(video.start for video in prompt.videos)
    assert length % 2 == 0
    assert first - 1 <= length <= first
    assert length > 20


def test_it_equals_what_the_engine_computes_bit_for_bit(bundle):
    plain = open_language(bundle, use_prefix=False)
    primed = open_language(bundle)
    assert (plain.length, plain.prefix_length) == (0, 0)
    length = primed.length
    assert length == primed.prefix_length == prefix_length(bundle.prompt())
    embeddings = prompt_embeddings(plain, bundle)
    whole = plain.extend(embeddings)
    np.testing.assert_array_equal(primed.extend(embeddings[length:]), whole[length:])
    primed.truncate(length)  # and it stays
    np.testing.assert_array_equal(primed.extend(embeddings[length:]), whole[length:])


def test_plans_are_the_same_with_and_without(bundle):
    request = read_frames_dir(FRAMES)
    plans = []
    for use_prefix in (False, True):
        planner = Planner(bundle, *open_engines(bundle, 1, use_prefix=use_prefix))
        for mode in ("fast", "slow"):
            plan = planner.plan(request, mode=mode).as_dict()
            del plan["stages_ms"]
            plans.append(plan)
    assert plans[:2] == plans[2:]


def test_it_is_never_forgotten(bundle):
    engine = open_language(bundle)
    engine.extend(prompt_embeddings(engine, bundle)[engine.length :])
    with pytest.raises(ValueError, match="of them the prompt's constant prefix, to 0"):
        engine.truncate(0)


@pytest.fixture
def copy(bundle, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(bundle.folder, folder)
    return folder


class Unchecked:
    """A bundle whose files were exchanged behind the manifest's back."""

    def __init__(self, bundle, folder):
        self.manifest, self.prompt = bundle.manifest, bundle.prompt
        self._folder = folder

    def path(self, name):
        return self._folder / name


def test_a_prefix_of_another_prompt_or_precision_is_refused(bundle, copy):
    path = copy / PREFIX_FILE
    tensors = load_file(path)
    exchanged = Unchecked(bundle, copy)
    read_prefix(exchanged)
    path.write_bytes(save(tensors, {BINDING: "prompt 00, vision int8, language int8"}))
    with pytest.raises(BundleError, match=r"the prefix of this engine .*got one of prompt 00"):
        read_prefix(exchanged)
    path.write_bytes(save(tensors))
    with pytest.raises(BundleError, match="got one of None"):
        read_prefix(exchanged)


def test_a_damaged_prefix_is_refused(bundle, copy):
    path = copy / PREFIX_FILE
    whole = path.read_bytes()
    exchanged = Unchecked(bundle, copy)
    path.write_bytes(whole[:-100])
    with pytest.raises(BundleError, match="cannot be read"):
        read_prefix(exchanged)
    tensors = load_file(bundle.path(PREFIX_FILE))
    binding = {BINDING: read_prefix_binding(bundle)}
    for changed in (
        {**tensors, "key.0": tensors["key.0"][:, 1:].copy()},
        {**tensors, "key.0": tensors["key.0"].astype(np.float16)},
        {name: tensor for name, tensor in tensors.items() if name != "value.3"},
        {**tensors, "key.99": tensors["key.0"]},
    ):
        path.write_bytes(save(changed, binding))
        with pytest.raises(BundleError, match=r"expected float32 \[2, \d+, 64\] for the key"):
            read_prefix(exchanged)


def read_prefix_binding(bundle):
    from safetensors import safe_open

    with safe_open(bundle.path(PREFIX_FILE), framework="numpy") as file:
        return file.metadata()[BINDING]


def test_equal_builds_have_equal_bytes(bundle, tmp_path_factory, tmp_path):
    demo = make_demo(tmp_path_factory.getbasetemp())
    folder = tmp_path / "again"
    manifest = bundle.manifest
    build_world_engine(demo.base.parent, folder, manifest.precision.language, manifest.target)
    assert (folder / PREFIX_FILE).read_bytes() == bundle.path(PREFIX_FILE).read_bytes()
