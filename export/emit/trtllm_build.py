"""The command that builds a TensorRT-LLM checkpoint's engine."""

from __future__ import annotations

import shlex
from dataclasses import dataclass

SCRIPT = """\
#!/bin/sh
# Builds the engine of this checkpoint into ./engine, or into the folder that is given. Not executed
# by autovla-rt: it needs a GPU as of the target {target}, and TensorRT-LLM in a release that has
# its TensorRT backend with qwen2_vl (the last ones are 1.2's).
{note}output=${{1:-engine}}
exec trtllm-build --checkpoint_dir "$(dirname "$0")" --output_dir "$output" {options}
"""

NOTES = {
    "int8_wo": (
        "# int8 weights as ModelOpt writes them. TensorRT-LLM 1.x, as read, rounds W8A16 itself: "
        "if it asks\n# for per_channel_scale, export fp16 and set quant_algo to W8A16 in its "
        "config.json.\n"
    ),
}
"""Precision -> what to know of it."""


@dataclass(frozen=True)
class BuildLimits:
    """Most tokens that an engine is built for.

    Attributes:
        input_tokens: Of a prompt.
        sequence: Of prompt and answer, which is what its KV cache holds.
        visual_tokens: Of a prompt's videos, the rows of its prompt table.
    """

    input_tokens: int
    sequence: int
    visual_tokens: int


def build_script(target: str, precision: str, limits: BuildLimits) -> str:
    """Return a shell script with the command line, for one request at a time."""
    options = {
        "max_batch_size": 1,
        "max_beam_width": 1,
        "max_input_len": limits.input_tokens,
        "max_num_tokens": limits.input_tokens,
        "max_seq_len": limits.sequence,
        "max_multimodal_len": limits.visual_tokens,
        "gemm_plugin": "auto",
    }
    words = shlex.join(f"--{name}={value}" for name, value in options.items())
    return SCRIPT.format(target=target, note=NOTES.get(precision, ""), options=words)
