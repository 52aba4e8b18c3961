"""Run by ModelOpt's own environment: quantizes linear layers and writes what it found.

    python modelopt_layers.py IN.npz OUT.npz

IN has NAME.weight [N, K] and NAME.rows [R, K] of each layer.
"""

import sys

import modelopt.torch.quantization as mtq
import numpy as np
import torch


def quantized(weight, rows, config):
    """Return a layer that was calibrated on the rows."""
    model = torch.nn.Sequential(torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False))
    model[0].weight.data = weight.clone()
    mtq.quantize(model, config, lambda of: of(rows))
    return model[0]


def main():
    """Quantize every layer by SmoothQuant and by AWQ."""
    given = np.load(sys.argv[1])
    found = {}
    for key in given.files:
        name, _, part = key.rpartition(".")
        if part != "weight":
            continue
        weight, rows = torch.tensor(given[key]), torch.tensor(given[f"{name}.rows"])
        smooth = quantized(weight, rows, mtq.INT8_SMOOTHQUANT_CFG)
        scale = smooth.weight_quantizer.amax.float() / 127
        awq = quantized(weight, rows, mtq.INT4_AWQ_CFG)
        found[f"{name}.smooth"] = 1 / smooth.input_quantizer.pre_quant_scale.float().numpy()
        found[f"{name}.scale"] = scale.numpy().reshape(-1)
        found[f"{name}.codes"] = torch.round(smooth.weight.float() / scale).to(torch.int8).numpy()
        found[f"{name}.awq"] = 1 / awq.input_quantizer.pre_quant_scale.float().numpy()
    np.savez(sys.argv[2], **found)


if __name__ == "__main__":
    main()
