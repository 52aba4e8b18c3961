"""Run by the Python of NVIDIA ModelOpt's environment: quantizes layers, one request a line.

    python modelopt_worker.py

A request is JSON: the method, the block of int4, and .npy files of weights [N, K], of input rows
[R, K] and for the answer. The answer is a line of JSON, and in its file what channels [K] may be
divided by. It imports nothing of this project, which is not installed there.
"""

import json
import os
import sys
from copy import deepcopy
from typing import Any

import modelopt.torch.quantization as mtq
import numpy as np
import torch

CONFIGURATIONS = {"int8_sq": mtq.INT8_SMOOTHQUANT_CFG, "int4_awq": mtq.INT4_AWQ_CFG}


def configuration(method: str, block: int) -> dict[str, Any]:
    """Return ModelOpt's own configuration of a method."""
    config: dict[str, Any] = deepcopy(CONFIGURATIONS[method])
    for entry in config["quant_cfg"]:
        if entry.get("cfg", {}).get("block_sizes"):
            entry["cfg"]["block_sizes"][-1] = block
    return config


def scales(request: dict[str, Any]) -> torch.Tensor:
    """Return what the channels [K] of a layer's inputs may be divided by."""
    weight, rows = (torch.from_numpy(np.load(request[key])) for key in ("weights", "rows"))
    layer = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    layer.weight.data = weight
    model = torch.nn.Sequential(layer)
    config = configuration(request["method"], request["block"])
    mtq.quantize(model, config, forward_loop=lambda of: of(rows))
    quantized: Any = model[0]
    found: torch.Tensor = 1 / quantized.input_quantizer.pre_quant_scale.float()
    return found


def main() -> None:
    """Answer requests until there are no more."""
    # ModelOpt prints: what it says must not come between the answers.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    print(json.dumps({"ready": True}), file=answers)
    with torch.no_grad():
        for line in sys.stdin:
            request = json.loads(line)
            found = scales(request)
            np.save(request["answer"], found.numpy())
            print(json.dumps({"channels": len(found)}), file=answers)


if __name__ == "__main__":
    main()
