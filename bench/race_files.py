"""What the race runs on: one random 3B checkpoint, our engines of it, and the peers' files.

    python bench/race_files.py WORK [--peers-python .venv-bench/bin/python] [--only NAME ...]

The prompt is filler of the lengths of AutoVLA's own with chain of thought (the official text is not
here): 1,209 tokens, 377 of them before the first camera, 720 visual; the fast answer has 45. What
exists already is kept, so that a run that was stopped goes on.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from export_3b import CLI, REPO, write_base
from random_checkpoint import GEOMETRY_3B, write_hf_folder
from tokenizers import Tokenizer

from autovla_rt.bundle import load_bundle
from autovla_rt.config import FRAMES_PER_CAMERA, Camera, Recipe
from autovla_rt.export.prompt import compile_prompt
from autovla_rt.export.recipes.toml import parse_toml, render_recipe
from autovla_rt.runtime.prompt import PromptEncoder
from autovla_rt.runtime.scene import Request

PEERS = Path(__file__).parent / "peers"
GENAI_PYTHON = REPO / ".venv-genai/bin/python"
MINIATURE = REPO / "demo" / "checkpoint"
PREFIX, PROMPT, ANSWER = 377, 1209, 45
MINIATURE_LENGTHS = 244, 34
"""Tokens of the miniature's prompt and of its fast answer (bench/ledger.py)."""
CAMERAS = tuple(Camera(name=n, grid=(2, 16, 30)) for n in ("front", "front_left", "front_right"))
WORD, ACTION = " road", "<action_0>"
ENGINES = {
    "ours-openvino-int4": ("x86", "int4"),
    "ours-openvino-int8": ("x86", "int8"),
    "ours-onnxruntime-int4": ("cpu", "int4"),
    "ours-onnxruntime-int8": ("cpu", "int8"),
}


def filler_recipe(tokenizer: Tokenizer) -> Recipe:
    """Return a recipe whose prompt and fast answer have the official lengths."""
    recipe = parse_toml((REPO / "demo" / "recipe.toml").read_text(), "demo")
    for _ in range(3):  # the last time finds nothing missing
        prefix, prompt, answer = lengths(recipe, tokenizer)
        given, (*user, (head, *rest)) = recipe.prompt_cot, recipe.prompt_cot.user
        opening, *end = recipe.answer.fast
        ahead, behind = PREFIX - prefix, PROMPT - prompt - (PREFIX - prefix)
        said = given.model_copy(
            update={
                "system": given.system + WORD * ahead,
                "user": (*user, (f"{(WORD * behind).strip()} {head}" if behind else head, *rest)),
            }
        )
        fast = (opening.replace("once.", f"once{WORD * (ANSWER - answer)}."), *end)
        answers = recipe.answer.model_copy(update={"fast": fast})
        recipe = recipe.model_copy(update={"prompt_cot": said, "answer": answers})
    return recipe


def lengths(recipe: Recipe, tokenizer: Tokenizer) -> tuple[int, int, int]:
    """Count tokens: before the first camera, of the prompt, of the fast answer with its end."""
    compiled = compile_prompt(
        tokenizer, recipe.prompt_cot, CAMERAS, GEOMETRY_3B, add_vision_id=False
    )
    frames = {camera.name: [Path()] * FRAMES_PER_CAMERA for camera in CAMERAS}
    ids = PromptEncoder(compiled, tokenizer).ids(Request(frames, 5.0, 0.1, "keep forward"))
    fast = "".join(part if isinstance(part, str) else ACTION * 10 for part in recipe.answer.fast)
    return compiled.videos[0].start, len(ids), len(tokenizer.encode(fast).ids) + 1


def prepare(work: Path, only: list[str], peers_python: Path) -> None:
    """Make what is missing of the checkpoint, our engines and the peers' files."""
    base = work / "base"
    if not (base / "config.json").exists():
        work.mkdir(parents=True, exist_ok=True)
        write_base(work, REPO / "../shared/qwen2.5-vl-processor")
        write_hf_folder(base, GEOMETRY_3B, seed=0)
        tokenizer = Tokenizer.from_file(str(base / "tokenizer.json"))
        (work / "recipe.toml").write_text(render_recipe(filler_recipe(tokenizer)))
    write_shape(work, PROMPT, ANSWER, GEOMETRY_3B.language.vocab_size, CAMERAS[0].grid)
    write_language_alone(base, work / "language")
    makers: dict[str, Callable[[], list[str]]] = {
        **{name: lambda name=name: _build(work, name) for name in ENGINES},
        "openvino": lambda: _peer(peers_python, "openvino_files.py", work),
        "llama.cpp": lambda: _peer(peers_python, "llama_cpp_files.py", work),
        "genai": lambda: _genai(work),
    }
    for name, command in makers.items():
        done = work / f"{name}.done"
        if (only and name not in only) or done.exists():
            continue
        is_peer = name not in ENGINES
        words = command()
        if not Path(words[0]).exists():
            print(f"{name}: skipped: {words[0]} is missing", file=sys.stderr, flush=True)
            continue
        print(name, file=sys.stderr, flush=True)
        subprocess.run(words, check=True, env=peer_environment() if is_peer else None)
        done.touch()


def prepare_miniature(work: Path) -> None:
    """Build the miniature's engines, for a quick race, in which transformers is the one peer."""
    work.mkdir(parents=True, exist_ok=True)
    (work / "base").unlink(missing_ok=True)
    (work / "base").symlink_to(MINIATURE / "base")
    for name, (target, precision) in ENGINES.items():
        checkpoint = f"--checkpoint {MINIATURE}/base --config {MINIATURE}/config.yaml"
        recipe = f"--recipe {REPO}/demo/recipe.toml --out {work / name}"
        words = f"build {checkpoint} {recipe} --target {target} --precision {precision}"
        subprocess.run([*CLI, *words.split()], check=True, capture_output=True)
    manifest = load_bundle(work / name).manifest
    vocabulary = manifest.geometry.language.vocab_size
    write_shape(work, *MINIATURE_LENGTHS, vocabulary, manifest.cameras[0].grid)


def write_shape(
    work: Path, prompt: int, answer: int, vocabulary: int, grid: tuple[int, int, int]
) -> None:
    """Tell the peers what a request looks like (bench/peers/worker.py)."""
    shape = {"prompt": prompt, "answer": answer, "vocabulary": vocabulary, "grid": grid}
    (work / "request.json").write_text(json.dumps(shape))


def write_language_alone(base: Path, folder: Path) -> None:
    """Write the language model as a plain Qwen2 checkpoint, over the same weight files."""
    if (folder / "config.json").exists():
        return
    folder.mkdir()
    index = json.loads((base / "model.safetensors.index.json").read_text())
    weights = {n: f for n, f in index["weight_map"].items() if not n.startswith("visual.")}
    for file in {*weights.values(), "tokenizer.json"}:
        os.link(base / file, folder / file)
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {}, "weight_map": weights})
    )
    language = GEOMETRY_3B.language
    config = {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "torch_dtype": "bfloat16",
        "hidden_act": "silu",
        "max_position_embeddings": 32768,
        "bos_token_id": 151643,
        "eos_token_id": 151645,
        **language.model_dump(exclude={"mrope_section", "head_dim"}),
    }
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    (folder / "generation_config.json").write_text("{}")
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|im_end|>"})
    )


def peer_environment() -> dict[str, str]:
    """Return an environment in which a peer's script finds its neighbours, and nothing of ours."""
    return {**os.environ, "PYTHONPATH": str(PEERS)}


def _build(work: Path, name: str) -> list[str]:
    target, precision = ENGINES[name]
    words = (
        f"build --checkpoint {work}/base --config {work}/config.yaml --recipe {work}/recipe.toml"
    )
    return [
        *CLI,
        *words.split(),
        *f"--target {target} --precision {precision}".split(),
        "--out",
        str(work / name),
    ]


def _peer(python: Path, script: str, work: Path) -> list[str]:
    return [str(python), str(PEERS / script), str(work)]


def _genai(work: Path) -> list[str]:
    """Build with genai's own builder, blocks of 32 as it does by default."""
    options = ("-i", work / "language", "-o", work / "genai", "-p", "int4", "-e", "cpu")
    return [
        str(word) for word in (GENAI_PYTHON, "-m", "onnxruntime_genai.models.builder", *options)
    ]


def main() -> None:
    """Read the arguments and prepare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("work", type=Path)
    parser.add_argument("--peers-python", type=Path, default=REPO / ".venv-bench/bin/python")
    parser.add_argument("--only", nargs="*", default=[])
    arguments = parser.parse_args()
    prepare(arguments.work, arguments.only, arguments.peers_python)


if __name__ == "__main__":
    main()
