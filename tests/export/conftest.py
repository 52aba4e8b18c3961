"""Checkpoints and tokenizers for the tests of export."""

from __future__ import annotations

import importlib.util
import lzma
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from demo_engine import RECIPE, make_demo

from autovla_rt.config import Geometry, LanguageGeometry, VisionGeometry
from autovla_rt.errors import CheckpointError
from autovla_rt.export.checkpoint import Checkpoint, open_checkpoint
from autovla_rt.export.open_model import ModelFiles, open_model
from autovla_rt.export.opened_model import OpenedModel
from autovla_rt.export.tensors.lora import LoraSettings

ROOT = Path(__file__).parents[2]
PROCESSOR = ROOT.parent / "shared" / "qwen2.5-vl-processor"


def load_module(path: Path) -> ModuleType:
    """Import a file that lies in no package (bench/, helpers beside the tests)."""
    spec = importlib.util.spec_from_file_location(f"autovla_tests_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up there
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def random_checkpoint() -> ModuleType:
    """The module bench/random_checkpoint.py."""
    return load_module(ROOT / "bench" / "random_checkpoint.py")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenedModel]:
    """The demo checkpoint, opened."""
    demo = make_demo(tmp_path_factory.getbasetemp())
    model = open_model(ModelFiles(demo.base, demo.config, recipe=RECIPE))
    with closing(model.checkpoint):
        yield model


@pytest.fixture(scope="session")
def torch_files() -> ModuleType:
    """The module torch_files.py: checkpoints written by torch and transformers themselves."""
    pytest.importorskip("torch")
    return load_module(Path(__file__).parent / "torch_files.py")


@pytest.fixture(scope="session")
def tiny_geometry() -> Geometry:
    """A Qwen2.5-VL of 2 + 2 layers with odd sizes, so that swapped axes do not go unnoticed."""
    return Geometry(
        vision=VisionGeometry(
            depth=2,
            hidden_size=32,
            num_heads=2,
            intermediate_size=40,
            out_hidden_size=48,
            fullatt_block_indexes=(1,),
        ),
        language=LanguageGeometry(
            hidden_size=48,
            num_hidden_layers=2,
            num_attention_heads=6,
            num_key_value_heads=2,
            head_dim=8,
            intermediate_size=72,
            vocab_size=200,
            rms_norm_eps=1e-6,
            rope_theta=1e6,
            mrope_section=(1, 1, 2),
            tie_word_embeddings=True,
        ),
    )


@pytest.fixture(scope="session")
def tiny_state(torch_files: ModuleType, tiny_geometry: Geometry) -> dict[str, Any]:
    """The tiny model's torch tensors in the old layout, the tied head among them."""
    state = torch_files.qwen_model(tiny_geometry).state_dict()
    return dict(torch_files.old_names(state))


@pytest.fixture(scope="session")
def refusal() -> Callable[..., str]:
    """A function that opens what must be refused and returns the message."""

    def refuse(path: Path, geometry: Geometry, lora: LoraSettings | None = None) -> str:
        with pytest.raises(CheckpointError) as caught:
            open_checkpoint(path, geometry=geometry, lora=lora)
        return str(caught.value)

    return refuse


@pytest.fixture(scope="session")
def assert_equal_to_torch(torch_files: ModuleType) -> Callable[[Checkpoint, dict[str, Any]], None]:
    """A function that compares every tensor bit for bit with torch's, and the set of names."""

    def compare(checkpoint: Checkpoint, state: dict[str, Any]) -> None:
        assert set(checkpoint.names) == set(state) - {"lm_head.weight"}
        for name in checkpoint.names:
            got = checkpoint.read(name)
            assert got.shape == tuple(state[name].shape), name
            assert got.tobytes() == torch_files.raw_bytes(state[name]), name

    return compare


@pytest.fixture(scope="session")
def qwen_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the real Qwen2.5-VL tokenizer and processor settings."""
    if not PROCESSOR.is_dir():
        pytest.skip(f"the Qwen2.5-VL processor files are not at {PROCESSOR}")
    folder = tmp_path_factory.mktemp("qwen")
    packed = (PROCESSOR / "tokenizer.json.xz").read_bytes()
    (folder / "tokenizer.json").write_bytes(lzma.decompress(packed))
    for path in PROCESSOR.glob("*.json"):
        (folder / path.name).write_bytes(path.read_bytes())
    return folder
