"""Run by ModelOpt's own environment: quantizes a model and exports its TensorRT-LLM checkpoint.

    python modelopt_trtllm.py FOLDER

FOLDER has a folder for each precision, and in it: weights (a Hugging Face folder of a Qwen2) and
ranges.npz, the largest |x| that each layer's input had; theirs is written there. Weights are
rounded as they are (max calibration), inputs multiplied by one: both were rescaled before.
"""

import copy
import sys
from pathlib import Path

import modelopt.torch.quantization as mtq
import numpy as np
import torch
from modelopt.torch.export import export_tensorrt_llm_checkpoint
from transformers import Qwen2ForCausalLM

CONFIGS = {
    "int8_sq": mtq.INT8_SMOOTHQUANT_CFG,
    "int8_wo": mtq.INT8_WEIGHT_ONLY_CFG,
    "int4_awq": mtq.INT4_AWQ_CFG,
    "fp8": mtq.FP8_DEFAULT_CFG,
}

PREQUANTIZED = ("int8_sq", "int4_awq")


def quantize(model, precision, ranges):
    """Round the weights, and give every layer the ranges of its input."""
    config = {**copy.deepcopy(CONFIGS[precision]), "algorithm": "max"}
    mtq.quantize(model, config, lambda of: of(torch.arange(64)[None]))
    for name, module in model.named_modules():
        if not name.startswith("model.layers.") or not name.endswith("_proj"):
            continue
        quantizer = module.input_quantizer
        if quantizer.is_enabled:
            quantizer.amax = torch.tensor(ranges[name])
        if precision in PREQUANTIZED:
            quantizer.pre_quant_scale = torch.ones(module.weight.shape[1])


def main():
    """Export every precision."""
    for folder in sorted(Path(sys.argv[1]).iterdir()):
        model = Qwen2ForCausalLM.from_pretrained(folder / "weights", dtype=torch.float32).eval()
        if folder.name in CONFIGS:
            quantize(model, folder.name, np.load(folder / "ranges.npz"))
        export_tensorrt_llm_checkpoint(
            model, "qwen", torch.float16, folder / "theirs", inference_tensor_parallel=1
        )


if __name__ == "__main__":
    main()
