"""onnxruntime-genai's language model; its vision tower is borrowed from the fastest peer."""

from __future__ import annotations

import json
import time

import numpy as np
import onnxruntime_genai as og
from worker import arguments, say, say_end


def main() -> None:
    """Measure."""
    given = arguments(__doc__)
    shape = given.shape
    start = time.perf_counter()
    config = og.Config(str(given.work / "genai"))
    options = {"intra_op_num_threads": given.threads}
    config.overlay(json.dumps({"model": {"decoder": {"session_options": options}}}))
    model = og.Model(config)
    load_s = time.perf_counter() - start
    tokens = np.random.default_rng(0).integers(0, 1000, shape.prompt).astype(np.int32)
    for index in range(1 + given.requests):
        parameters = og.GeneratorParams(model)
        length = shape.prompt + shape.answer
        parameters.set_search_options(max_length=length, min_length=length, do_sample=False)
        generator = og.Generator(model, parameters)
        begin = time.perf_counter()
        generator.append_tokens(tokens)
        generator.generate_next_token()
        first = time.perf_counter()
        for _ in range(shape.answer - 1):
            generator.generate_next_token()
        last = time.perf_counter()
        if index:
            say(prefill=first - begin, decode=last - first)
    say_end(load_s, version=og.__version__)


if __name__ == "__main__":
    main()
