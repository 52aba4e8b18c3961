"""How fast this machine multiplies int8 matrices: the rate that engines are held against.

    python bench/gemm.py [--threads 2]

ONNX Runtime's uint8 x int8 kernel, the fastest of those tried (torch's and oneDNN's are slower),
at the shapes of the 3B model's MLP and 833 rows; the best of so many runs. Prints GOP/s.
"""

from __future__ import annotations

import argparse
import json
import time

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from autovla_rt.onnx_runtime import ort

ROWS = 833
SHAPES = ((2048, 11008), (11008, 2048))
RUNS = 9


def rate(inputs: int, outputs: int, threads: int) -> float:
    """Return the best GOP/s of a product [ROWS, inputs] x [inputs, outputs]."""
    rng = np.random.default_rng(0)
    weights = {
        "w": rng.integers(-127, 128, (inputs, outputs), np.int8),
        "a_scale": np.array(1 / 127, np.float32),
        "w_scale": np.full(outputs, 0.01, np.float32),
        "a_zero": np.array(128, np.uint8),
    }
    node = helper.make_node(
        "MatMulIntegerToFloat",
        ["a", "w", "a_scale", "w_scale", "a_zero"],
        ["y"],
        domain="com.microsoft",
    )
    graph = helper.make_graph(
        [node],
        "gemm",
        [helper.make_tensor_value_info("a", TensorProto.UINT8, [ROWS, inputs])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [ROWS, outputs])],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    session = ort.InferenceSession(model.SerializeToString(), options)
    given = {"a": rng.integers(0, 256, (ROWS, inputs), np.uint8)}
    seconds = []
    for _ in range(RUNS):
        start = time.perf_counter()
        session.run(None, given)
        seconds.append(time.perf_counter() - start)
    return 2 * ROWS * inputs * outputs / min(seconds) / 1e9


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=2)
    threads = parser.parse_args().threads
    print(json.dumps({"gops": max(rate(*shape, threads) for shape in SHAPES)}))


if __name__ == "__main__":
    main()
