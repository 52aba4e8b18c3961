"""Everything that TensorRT Edge-LLM needs on a device, in one folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from autovla_rt.config import CAMERAS, FRAMES_PER_CAMERA, Camera
from autovla_rt.edgellm import (
    CHECKPOINT_FOLDER,
    CODEBOOK_FILE,
    GUIDES_FOLDER,
    RECORD,
    ServedModel,
)
from autovla_rt.edgellm_commands import COMMANDS_FILE, Limits, commands
from autovla_rt.errors import TargetError
from autovla_rt.export.build import (
    check_capacity,
    engine_prompt,
    prompt_positions,
)
from autovla_rt.export.codebook import write_codebook
from autovla_rt.export.edgellm_exporter import export_graphs, exporter_command
from autovla_rt.export.emit.reduced_vocabulary import emit_reduced_vocabulary
from autovla_rt.export.opened_model import OpenedModel
from autovla_rt.export.progress import Progress
from autovla_rt.export.settings import Settings
from autovla_rt.export.targets import TARGETS
from autovla_rt.export.unified import export_checkpoint
from autovla_rt.export.unified_settings import EDGE_LLM_SMS
from autovla_rt.runtime.backends.edgellm import EdgeLLM
from autovla_rt.runtime.edgellm_guide import (
    answer_tokens,
    answer_vocabulary,
    check_markers,
    ebnf,
    guide_modes,
    regular_expression,
)
from autovla_rt.runtime.grammar import Grammar, compile_answer
from autovla_rt.runtime.scene import Request

GRAPHS_FOLDER = "onnx"


def check_edgellm(target: str, exporter: Path | None) -> None:
    """Refuse what cannot be exported for Edge-LLM, before any work.

    Raises:
        TargetError: Edge-LLM is not the target's engine.
        DependencyError: the exporter that was given is not one.
    """
    if TARGETS[target].sm not in EDGE_LLM_SMS:
        served = [name for name, of in TARGETS.items() if of.sm in EDGE_LLM_SMS]
        raise TargetError(
            f"target {target} ({TARGETS[target].description}): expected a device of TensorRT "
            f"Edge-LLM, one of {', '.join(served)}. For others, autovla-rt export checkpoint."
        )
    if exporter is not None:
        exporter_command(exporter)


def export_edgellm(
    model: OpenedModel,
    settings: Settings,
    cameras: tuple[Camera, ...],
    folder: Path,
    exporter: Path | None,
    progress: Progress,
) -> None:
    """Write everything into a folder that is there and empty.

    Args:
        model: The checkpoint.
        settings: What the user chose, as `check_unified` and `check_edgellm` let it pass.
        cameras: In the order of the prompt.
        folder: Where.
        exporter: NVIDIA's, which writes its graphs too; None leaves that to the user.
        progress: Is told of the stages.

    Raises:
        TargetError, CalibrationError, CheckpointError: as `export_checkpoint`.
        CapacityError: prompt and answer do not fit the KV capacity.
        CheckpointError: Edge-LLM cannot hold the answer to its grammar, or its exporter failed.
    """
    check_markers(model.tokenizer)
    prompt = engine_prompt(model, cameras)
    check_capacity(model, prompt, settings.kv_capacity)
    checkpoint, sm = folder / CHECKPOINT_FOLDER, TARGETS[settings.target].sm
    assert sm is not None  # Edge-LLM's devices have a GPU
    checkpoint.mkdir()
    export_checkpoint(model, settings, checkpoint, progress)
    modes = _write_requests(model, cameras, folder)
    if exporter is not None:
        progress.stage("NVIDIA's exporter", None)
        export_graphs(exporter_command(exporter), checkpoint, folder / GRAPHS_FOLDER, sm)
    input_tokens = sum(prompt_positions(model, prompt).values())
    limits = _limits(model, cameras, input_tokens, settings.kv_capacity)
    text = commands(limits, sm, _reduced(modes), modes, graphs=exporter is not None)
    (folder / COMMANDS_FILE).write_text(text, "utf-8")


def _write_requests(
    model: OpenedModel, cameras: tuple[Camera, ...], folder: Path
) -> tuple[str, ...]:
    """Write what requests and answers need; returns the modes that have guides."""
    grammar = compile_answer(
        model.tokenizer,
        model.recipe.answer,
        use_cot=model.use_cot,
        actions=model.actions,
        end_token_id=model.end_token_ids[0],
    )
    modes = guide_modes(grammar)
    record = _served_model(model, cameras, grammar)
    (folder / RECORD).write_text(record.model_dump_json(indent=1) + "\n", "utf-8")
    write_codebook(model.codebook, folder / CODEBOOK_FILE)
    guides = folder / GUIDES_FOLDER
    guides.mkdir()
    for mode in modes:
        expression = regular_expression(record.answer, mode, record.actions)
        _write_json(guides / f"{mode}.json", {"ebnf": ebnf(grammar, mode)})
        _write_json(guides / f"{mode}.regex.json", {"regex": expression})
    body = _example(EdgeLLM.load(folder))
    _write_json(folder / "request.json", body)
    _write_json(folder / "input.json", _input_file(body))
    _write_reduced(model, grammar, body, folder / _reduced(modes))
    return modes


def _write_reduced(
    model: OpenedModel, grammar: Grammar, body: dict[str, Any], folder: Path
) -> None:
    mode = folder.name
    ids = answer_vocabulary(grammar, mode, model.end_token_ids)
    emit_reduced_vocabulary(ids, model.geometry.language.vocab_size, folder)
    guide = {"ebnf": ebnf(grammar, mode, ids)}
    _write_json(folder / "input.json", _input_file({**body, "guided_decoding": guide}))


def _reduced(modes: tuple[str, ...]) -> str:
    """Return the mode without reasoning, which a reduced vocabulary can be made for."""
    return "direct" if "direct" in modes else "fast"


def _served_model(model: OpenedModel, cameras: tuple[Camera, ...], grammar: Grammar) -> ServedModel:
    recipe = model.recipe
    return ServedModel(
        prompt=recipe.prompt_cot if model.use_cot else recipe.prompt_direct,
        answer=recipe.answer,
        add_vision_id=recipe.add_vision_id,
        cameras=cameras,
        preprocessing=model.preprocessing,
        vision=model.geometry.vision,
        actions=model.actions,
        answer_tokens={mode: answer_tokens(grammar, mode) for mode in guide_modes(grammar)},
    )


def _example(served: EdgeLLM) -> dict[str, Any]:
    """Return a request's body with frames that are to be put where it says."""
    paths = {
        camera: [f"frames/{camera}_{index}.png" for index in range(FRAMES_PER_CAMERA)]
        for camera in CAMERAS
    }
    frames = {camera: tuple(map(Path, of)) for camera, of in paths.items()}
    request = Request(frames, velocity=5.0, acceleration=0.0, instruction="go straight")
    return served.body_with(request, paths)


def _input_file(body: dict[str, Any]) -> dict[str, Any]:
    """Return the same request as a file for Edge-LLM's llm_inference."""
    return {
        "batch_size": 1,
        "temperature": body["temperature"],
        "top_p": 1.0,
        "top_k": 1,
        "max_generate_length": body["max_tokens"],
        "requests": [
            {"messages": body["messages"], "guided_decoding": body["guided_decoding"]},
        ],
    }


def _limits(
    model: OpenedModel, cameras: tuple[Camera, ...], input_tokens: int, kv_capacity: int
) -> Limits:
    merge = model.geometry.vision.spatial_merge_size
    tokens = sum(camera.num_visual_tokens(merge) for camera in cameras)
    groups = sum(camera.grid[0] for camera in cameras)
    return Limits(
        input_tokens=input_tokens,
        kv_capacity=kv_capacity,
        # Edge-LLM's profile has room for max/min sequences of the vision tower's attention.
        min_visual_tokens=tokens // groups,
        visual_tokens=tokens,
        tokens_of_temporal_patch=max(
            camera.num_visual_tokens(merge) // camera.grid[0] for camera in cameras
        ),
    )


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", "utf-8")
