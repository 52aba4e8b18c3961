"""The commands that make an engine of an Edge-LLM folder on the device and ask it, as text."""

from __future__ import annotations

from dataclasses import dataclass

from autovla_rt.edgellm import CHECKPOINT_FOLDER, VERSION

COMMANDS_FILE = "COMMANDS.md"


@dataclass(frozen=True)
class Limits:
    """What engines are built for.

    Attributes:
        input_tokens: Positions of the longest prompt.
        kv_capacity: Positions of prompt and answer.
        min_visual_tokens: The fewest of a pass of the vision tower.
        visual_tokens: Of all cameras together.
        tokens_of_temporal_patch: Of the largest camera's temporal patch.
    """

    input_tokens: int
    kv_capacity: int
    min_visual_tokens: int
    visual_tokens: int
    tokens_of_temporal_patch: int


def commands(limits: Limits, sm: int, reduced: str, modes: tuple[str, ...], *, graphs: bool) -> str:
    """Return the text of `COMMANDS_FILE`.

    Args:
        limits: Of the engines.
        sm: Compute capability of the device, without the dot.
        reduced: Folder of the reduced vocabulary.
        modes: Of the guides.
        graphs: Whether onnx/ is there.
    """
    exported = "" if graphs else EXPORT.format(checkpoint=CHECKPOINT_FOLDER, sm=sm, version=VERSION)
    fields = {**vars(limits), "checkpoint": CHECKPOINT_FOLDER, "version": VERSION, "sm": sm}
    return TEXT.format(**fields, exported=exported, reduced=reduced, modes=", ".join(modes))


EXPORT = """
`onnx/` is not there yet. It is made on any host, without a GPU:

    pip install 'tensorrt-edgellm[export,tools]=={version}' torch==2.13.0
    tensorrt-edgellm-export {checkpoint} onnx --target-sm {sm}
"""

TEXT = """\
# On the device: TensorRT Edge-LLM {version}, SM {sm}

Built, not executed: the files here were written, and exported by NVIDIA's own exporter where
`onnx/` is there, but no engine of them was built or run. Names of options are those of release
{version}. All paths are relative to this folder.

## From the wheel: builds engines from the checkpoint, without ONNX

    pip install 'tensorrt-edgellm[server]=={version}' tensorrt==10.16.0.72
    tensorrt-edgellm-serve {checkpoint} --cache-dir cache \\
      --max-batch-size 1 --max-input-len {input_tokens} --max-kv-cache-capacity {kv_capacity} \\
      --max-image-tokens {visual_tokens} --max-image-tokens-per-image {tokens_of_temporal_patch} \\
      --reasoning-parser none --allowed-local-media-path frames
    curl -s http://localhost:8000/v1/chat/completions \\
      -H 'Content-Type: application/json' -d @request.json

`request.json` names its frames in `frames/` relative to where the server was started.

## An engine for answers without reasoning

`{reduced}/` keeps the LM head's rows that such an answer needs, and the grammar in its request
counts in these rows. The server has no option for it. The builder and the exporter have, and
`llm_inference`, a program of a source build, runs it:

    tensorrt-edgellm-build --model-dir {checkpoint} --engine-dir engines-{reduced} \\
      --reduced-vocab-dir {reduced} \\
      --max-batch-size 1 --max-input-len {input_tokens} --max-kv-cache-capacity {kv_capacity} \\
      --min-image-tokens {min_visual_tokens} --max-image-tokens {visual_tokens} \\
      --max-image-tokens-per-image {tokens_of_temporal_patch}
    llm_inference --engineDir engines-{reduced} --multimodalEngineDir engines-{reduced} \\
      --checkpointDir {checkpoint} --inputFile {reduced}/input.json --outputFile output.json

## From ONNX, with the programs of a source build
{exported}
    llm_build --onnxDir onnx/llm --engineDir engines/llm --maxBatchSize 1 \\
      --maxInputLen {input_tokens} --maxKVCacheCapacity {kv_capacity}
    visual_build --onnxDir onnx/visual --engineDir engines --minImageTokens {min_visual_tokens} \\
      --maxImageTokens {visual_tokens} --maxImageTokensPerImage {tokens_of_temporal_patch}
    llm_inference --engineDir engines/llm --multimodalEngineDir engines \\
      --inputFile input.json --outputFile output.json

## What holds the answer to its form

`guided_decoding/MODE.json` ({modes}) is a request's `guided_decoding`: an EBNF over token ids,
which allows at every step what autovla-rt's own decoding allows; `MODE.regex.json` describes the
same texts by a regular expression, in which an action may be spelled by other tokens, too.
Edge-LLM constrains what follows `</think>` where that is one token. In Qwen2.5's vocabulary it is
not, so the whole answer is constrained, `<think>` included. Nothing closes reasoning that
`max_tokens` cuts off: such an answer has no plan.
"""
