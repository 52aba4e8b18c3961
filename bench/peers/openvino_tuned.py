"""OpenVINO with the settings that were best for it: int4 group 128, NNCF int8 vision, bfloat16.

The head is applied to the last position alone, as OpenVINO GenAI does it. The first request warms
up: it brings the weights into their order.
"""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import openvino as ov
import openvino.opset13 as ops
from worker import Shape, arguments, say, say_end, timed

SETTINGS = {
    "PERFORMANCE_HINT": "LATENCY",
    "NUM_STREAMS": 1,
    "DYNAMIC_QUANTIZATION_GROUP_SIZE": 128,
    "INFERENCE_PRECISION_HINT": "bf16",
}


class Language:
    """The exported language model, stateful."""

    def __init__(self, folder: Path, settings: dict[str, object], shape: Shape) -> None:
        self._shape = shape
        model = ov.Core().read_model(folder / "openvino_model.xml")
        _head_of_the_last_position(model)
        self._request = ov.Core().compile_model(model, "CPU", settings).create_infer_request()
        self._rng = np.random.default_rng(0)

    def forward(self, count: int, past: int) -> None:
        """Pass random tokens."""
        self._request.infer(
            {
                "input_ids": self._rng.integers(0, self._shape.vocabulary, (1, count)),
                "attention_mask": np.ones((1, past + count), np.int64),
                "position_ids": np.arange(past, past + count)[None],
                "beam_idx": np.zeros(1, np.int32),
            },
            share_inputs=True,
            share_outputs=True,
        )

    def prefill(self) -> None:
        """Begin anew with the prompt."""
        self._request.reset_state()
        self.forward(self._shape.prompt, 0)

    def decode(self) -> None:
        """Pass the tokens of an answer, one by one; the last one needs no pass."""
        for index in range(self._shape.answer - 1):
            self.forward(1, self._shape.prompt + index)


def _head_of_the_last_position(model: ov.Model) -> None:
    (logits,) = [r for r in model.get_results() if "logits" in r.input_value(0).get_names()]
    head = logits.input_value(0).get_node()
    while head.get_type_name() != "MatMul":
        head = head.input_value(0).get_node()
    last = ops.gather(head.input_value(0), ops.constant(np.array([-1])), ops.constant(1))
    head.input(0).replace_source_output(last.output(0))


def main() -> None:
    """Measure."""
    given = arguments(__doc__)
    settings = {**SETTINGS, "INFERENCE_NUM_THREADS": given.threads}
    start = time.perf_counter()
    vision = [
        ov.Core().compile_model(path, "CPU", settings).create_infer_request()
        for path in sorted(given.work.glob("openvino-vision-*.xml"))
    ]
    patches = np.random.default_rng(0).standard_normal((2880, 1176), dtype=np.float32)

    def encode() -> None:
        states = patches
        for part in vision:
            part.infer([states], share_inputs=True)
            states = part.get_output_tensor().data

    language = Language(given.work / "openvino-language", settings, given.shape)
    load_s = time.perf_counter() - start
    for index in range(1 + given.requests):
        vision_s = timed(encode)
        prefill_s, decode_s = timed(language.prefill), timed(language.decode)
        if index:
            say(vision=vision_s, prefill=prefill_s, decode=decode_s)
    say_end(load_s, version=ov.__version__, settings=settings)


if __name__ == "__main__":
    main()
