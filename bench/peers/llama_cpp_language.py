"""llama.cpp's language model; its vision tower is borrowed from the fastest peer."""

from __future__ import annotations

import ctypes
import random
import time

import llama_cpp
from worker import arguments, say, say_end, timed

UBATCH = 512


@llama_cpp.llama_log_callback
def _quiet(_level: int, _text: bytes, _data: object) -> None:
    """Say nothing."""


def main() -> None:
    """Measure."""
    given = arguments(__doc__)
    shape = given.shape
    llama_cpp.llama_log_set(_quiet, ctypes.c_void_p(0))
    llama_cpp.llama_backend_init()
    start = time.perf_counter()
    model = llama_cpp.llama_model_load_from_file(
        str(given.work / "llama.gguf").encode(), llama_cpp.llama_model_default_params()
    )
    settings = llama_cpp.llama_context_default_params()
    settings.n_ctx = settings.n_batch = 2048
    settings.n_ubatch = UBATCH
    settings.n_threads = settings.n_threads_batch = given.threads
    context = llama_cpp.llama_init_from_model(model, settings)
    load_s = time.perf_counter() - start
    memory = llama_cpp.llama_get_memory(context)
    batch = llama_cpp.llama_batch_init(2048, 0, 1)

    def forward(count: int, past: int) -> None:
        batch.n_tokens = count
        for index in range(count):
            batch.token[index] = random.randrange(shape.vocabulary)
            batch.pos[index], batch.n_seq_id[index], batch.seq_id[index][0] = past + index, 1, 0
            batch.logits[index] = index + 1 == count
        if llama_cpp.llama_decode(context, batch):
            raise RuntimeError("llama_decode failed")
        llama_cpp.llama_get_logits_ith(context, -1)

    def prefill() -> None:
        llama_cpp.llama_memory_clear(memory, True)
        forward(shape.prompt, 0)

    def decode() -> None:
        for index in range(shape.answer - 1):
            forward(1, shape.prompt + index)

    prefill()
    for _ in range(given.requests):
        say(prefill=timed(prefill), decode=timed(decode))
    say_end(load_s, version=llama_cpp.__version__, ubatch=UBATCH)


if __name__ == "__main__":
    main()
