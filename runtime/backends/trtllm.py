"""TensorRT-LLM: what its engines are given and constrained by.

Such an engine is built of what `autovla-rt export trtllm` writes and decodes by itself. Per request
its `ModelRunnerCpp.generate` takes, besides greedy sampling (`top_k=1`) and the end token:

- `batch_input_ids=[ids]` and `prompt_table=table[None]`, see `prompt_table`; `prompt_tasks="0"`;
- `mrope_params`, the two tensors of mrope.safetensors;
- `logits_processor_names=[GRAMMAR]`, which is `GrammarLogits`.

Prompt and mask are computed and tested without TensorRT-LLM. No engine was run with them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autovla_rt.config import CompiledPrompt
from autovla_rt.errors import DependencyError
from autovla_rt.runtime.backends import Float
from autovla_rt.runtime.decoding_options import DEFAULT_THINKING_TOKEN_BUDGET, Mode
from autovla_rt.runtime.grammar import Grammar, Literal
from autovla_rt.runtime.grammar_mask import GrammarMask

GRAMMAR = "grammar"
"""Name that the runner knows the grammar's logits processor by."""


def prompt_table(
    prompt: CompiledPrompt,
    prompt_ids: NDArray[np.int64],
    features: Mapping[str, Float],
    vocab_size: int,
) -> tuple[NDArray[np.int32], NDArray[np.float16]]:
    """Return a request's input ids [p] and the table [visual tokens, hidden] that they refer to.

    Args:
        prompt: The engine's prompt.
        prompt_ids: [p] ids of the whole prompt (visual tokens as their placeholder id).
        features: Each camera's visual features [count, hidden].
        vocab_size: Of the checkpoint; id `vocab_size + i` is row i of the table.
    """
    ids = prompt_ids.astype(np.int32)
    rows = vocab_size
    for video in prompt.videos:
        ids[video.start : video.start + video.count] = np.arange(rows, rows + video.count)
        rows += video.count
    table = np.concatenate([features[video.camera] for video in prompt.videos])
    return ids, table.astype(np.float16)


class GrammarLogits:
    """The grammar as a logits processor of TensorRT-LLM, for one request at a time.

    Args:
        grammar: The checkpoint's answers.
        max_seq_len: Most tokens of prompt and answer, as the engine was built.
        mode: "auto" lets the model decide; "fast" and "slow" force the branch.
        thinking_token_budget: Most reasoning ids; less where the answer would not fit the engine.

    Raises:
        InputError: the mode or the budget cannot be served.
    """

    def __init__(
        self,
        grammar: Grammar,
        max_seq_len: int,
        mode: Mode = "auto",
        thinking_token_budget: int = DEFAULT_THINKING_TOKEN_BUDGET,
    ) -> None:
        self._grammar, self._max_seq_len = grammar, max_seq_len
        self._mode, self._budget = mode, thinking_token_budget
        self._mask = GrammarMask(grammar, mode, thinking_token_budget)
        self._request: int | None = None
        self._prompt_length = 0

    def __call__(
        self,
        req_id: int,
        logits: Any,
        token_ids: Sequence[Sequence[int]],
        stream_ptr: int | None,
        client_id: int | None,  # noqa: ARG002  # TensorRT-LLM's signature
    ) -> None:
        """Set the logits of every id that may not follow to minus infinity, in place.

        Args:
            req_id: Of the request; the first call with another one begins a new answer.
            logits: [1, beams, vocabulary], a torch tensor.
            token_ids: [beams][prompt and answer so far].
            stream_ptr: CUDA stream that the logits are used in; None without one.
            client_id: Not used.
        """
        if req_id != self._request:
            self._begin(req_id, len(token_ids[0]))
        with _stream(stream_ptr):
            for beam, written in enumerate(token_ids):
                allowed = self._mask.allowed(written[self._prompt_length :])
                row = logits[0, beam]
                kept = row[allowed]
                row[:] = -np.inf
                row[allowed] = kept

    def _begin(self, request: int, prompt_length: int) -> None:
        self._request, self._prompt_length = request, prompt_length
        branch = "direct" if self._grammar.choice is None else "slow"
        end = self._grammar.branches[branch][-1]
        assert isinstance(end, Literal)
        answer = self._grammar.positions(branch) + 1 + len(end.ids)
        spare = max(self._max_seq_len - prompt_length - answer, 0)
        self._mask = GrammarMask(self._grammar, self._mode, min(self._budget, spare))


def load_engine(folder: Path, grammar: GrammarLogits) -> Any:
    """Load an engine with TensorRT-LLM's C++ runner.

    Raises:
        DependencyError: TensorRT-LLM is not installed.
    """
    try:
        runtime = import_module("tensorrt_llm.runtime")
    except ModuleNotFoundError as error:
        raise DependencyError(
            "engines of TensorRT-LLM need tensorrt_llm, which is not installed here.\n"
            "Install it on a machine with an NVIDIA GPU, in the release that built the engine: "
            "pip install 'autovla-rt[trtllm]'"
        ) from error
    return runtime.ModelRunnerCpp.from_dir(str(folder), logits_processor_map={GRAMMAR: grammar})


def _stream(pointer: int | None) -> contextlib.AbstractContextManager[Any]:
    """Return the context in which torch works in a CUDA stream."""
    if pointer is None:
        return contextlib.nullcontext()
    cuda = import_module("torch").cuda
    stream: contextlib.AbstractContextManager[Any] = cuda.stream(cuda.ExternalStream(pointer))
    return stream
