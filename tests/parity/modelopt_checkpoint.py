"""Run by ModelOpt's own environment: quantizes a model and exports its unified checkpoint.

    python modelopt_checkpoint.py FOLDER

FOLDER has a folder for each precision, and in it: weights (a Hugging Face folder) and ranges.npz,
the largest |x| that each layer's input and each layer's keys and values had; theirs is written
there. Weights are rounded as they are (max calibration): they were rescaled before.
"""

import copy
import sys
from pathlib import Path

import modelopt.torch.quantization as mtq
import numpy as np
import torch
from modelopt.torch.export import export_hf_checkpoint
from transformers import Qwen2_5_VLForConditionalGeneration

CONFIGS = {
    "int8_sq": mtq.INT8_SMOOTHQUANT_CFG,
    "int8_wo": mtq.INT8_WEIGHT_ONLY_CFG,
    "int4_awq": mtq.INT4_AWQ_CFG,
    "fp8": mtq.FP8_DEFAULT_CFG,
    "nvfp4": mtq.NVFP4_DEFAULT_CFG,
}


def main():
    """Export every precision."""
    for folder in sorted(Path(sys.argv[1]).iterdir()):
        precision, _, kv = folder.name.partition(",")
        ranges = np.load(folder / "ranges.npz")
        model = Qwen2_5_VLForConditionalGeneration.from_pretrained(
            folder / "weights", dtype=torch.float32
        )
        config = {**copy.deepcopy(CONFIGS[precision]), "algorithm": "max"}
        if kv:
            config["quant_cfg"] = config["quant_cfg"] + mtq.FP8_KV_CFG["quant_cfg"]
        mtq.quantize(model.eval(), config, lambda of: of(torch.arange(64)[None]))
        for name, module in model.model.language_model.named_modules():
            for key, quantizer in (
                (f"model.{name}", "input_quantizer"),
                (f"model.{name}.keys", "k_bmm_quantizer"),
                (f"model.{name}.values", "v_bmm_quantizer"),
            ):
                of = getattr(module, quantizer, None)
                if of is not None and of.is_enabled and key in ranges:
                    of.amax = torch.tensor(ranges[key])
        export_hf_checkpoint(model, export_dir=folder / "theirs")


if __name__ == "__main__":
    main()
