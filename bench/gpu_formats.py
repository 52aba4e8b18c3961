"""Whether a GPU's tensor cores compute what the fake-quantized reference says.

    python bench/gpu_formats.py write FILE.npz      # anywhere: layers of the miniature, quantized
    python bench/gpu_formats.py run FILE.npz        # with torch, on an NVIDIA GPU (fp8: SM 8.9)

`write` calibrates the miniature on its sixteen tracked scenes and stores every linear layer as the
standard dialect stores it, with the rows of real inputs that the calibration kept. `run` multiplies
the codes on integer, FP8 and FP16 tensor cores, applies the scales, and compares: integers must be
exact, floats near the product of the dequantized values in float64.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Arrays = dict[str, NDArray[Any]]

FORMATS = ("int8", "fp8")
OUTPUTS = 512
"""Of each layer, the most that are written."""

MULTIPLE = 16
"""Of every dimension that the libraries' 8-bit products take."""


def write(path: Path) -> None:
    """Write the layers' inputs and weights, as codes and scales."""
    from export_3b import REPO
    from quantization import CHECKPOINT, command, model_options

    from autovla_rt.demo.world_engine import model_files
    from autovla_rt.export.calibration.calibrated_weights import CalibratedWeights
    from autovla_rt.export.calibration.groups import language_groups, vision_groups
    from autovla_rt.export.calibration.statistics import read_statistics
    from autovla_rt.export.graph.dialect import Formats
    from autovla_rt.export.graph.qdq import QDQ, input_scale
    from autovla_rt.export.open_model import open_model

    tensors: Arrays = {}
    with tempfile.TemporaryDirectory() as folder:
        calibration = Path(folder) / "calibration"
        scenes = REPO / "calib_data" / "miniature"
        given = f"--scenes {scenes}/scenes --sensor-root {scenes}/sensors --count 16"
        command(f"calibrate {model_options(Path(folder), 'plain')} {given} --out {calibration}")
        model = open_model(model_files(CHECKPOINT))
        groups = [*vision_groups(model.geometry.vision), *language_groups(model.geometry.language)]
        weights = CalibratedWeights(model.weights(), groups, calibration, lambda _: "int8_sq", 128)
        weights.fit(model.weights(), lambda _: None)
        for group in groups:
            seen = read_statistics(calibration / f"{group.step}.safetensors")[group.readers[0]]
            rows = seen.rows / weights.read_scale(group.readers[0])
            for reader in group.readers:
                count, *width = weights.shape(f"{reader}.weight")
                matrix = weights.rows(f"{reader}.weight", 0, min(count, OUTPUTS))
                matrix = matrix.reshape(len(matrix), int(np.prod(width)))
                tensors[f"{reader}|x"], tensors[f"{reader}|w"] = rows, matrix
                for name in FORMATS:
                    formats, qdq = Formats(lambda _, n=name: n, ranges=weights), QDQ[name]
                    scale = input_scale(qdq.weights, formats, reader)
                    by_row = qdq.weights.scale(matrix, "float32")
                    codes = qdq.weights.codes(matrix, by_row[:, None])
                    tensors[f"{reader}|{name}.x"] = qdq.weights.bytes(
                        qdq.weights.codes(rows, scale)
                    )
                    tensors[f"{reader}|{name}.w"] = qdq.weights.bytes(codes)
                    tensors[f"{reader}|{name}.scales"] = scale * by_row
        model.checkpoint.close()
    np.savez_compressed(path, **tensors)


def run(path: Path) -> dict[str, Any]:
    """Multiply on the GPU; returns the worst differences by format."""
    import torch

    stored = np.load(path)
    layers = sorted({key.partition("|")[0] for key in stored.files})
    found: dict[str, Any] = {
        "device": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "layers": len(layers),
    }
    off: dict[str, list[float]] = {}
    for layer in layers:
        of = {name: stored[f"{layer}|{name}"] for name in ("x", "w")}
        exact = of["x"].astype(np.float64) @ of["w"].astype(np.float64).T
        half = _half(torch, of["x"]) @ _half(torch, of["w"]).T
        _note(off, "fp16 product", half.float().cpu().numpy(), exact)
        for name in FORMATS:
            codes = {side: stored[f"{layer}|{name}.{side}"] for side in ("x", "w")}
            scales = stored[f"{layer}|{name}.scales"].astype(np.float64)
            values = {side: _values(name, of).astype(np.float64) for side, of in codes.items()}
            reference = values["x"] @ values["w"].T
            for how, product in _products(torch, name, codes):
                _note(off, f"{name} {how}", product, reference)
                _note(off, f"{name} {how}, against float32", product * scales, exact)
    found["worst and median relative difference of a layer"] = {
        name: [float(np.max(of)), float(np.median(of))] for name, of in off.items()
    }
    return found


def _half(torch: Any, values: NDArray[Any]) -> Any:
    return torch.tensor(values, device="cuda").half()


def _values(name: str, codes: NDArray[Any]) -> NDArray[Any]:
    if name == "int8":
        return codes
    import ml_dtypes

    return codes.view(ml_dtypes.float8_e4m3fn).astype(np.float32)


def _products(torch: Any, name: str, codes: Arrays) -> list[tuple[str, NDArray[Any]]]:
    """Return products of codes [M, K] and [N, K], by how they were computed."""
    rows, outputs = len(codes["x"]), len(codes["w"])
    x, w = (torch.tensor(_padded(codes[side]), device="cuda") for side in ("x", "w"))
    if name == "int8":
        made = {"integers": torch._int_mm(x, w.t())}
    else:
        one = torch.ones((), device="cuda")
        x, w = x.view(torch.float8_e4m3fn), w.view(torch.float8_e4m3fn)
        made = {
            how: torch._scaled_mm(x, w.t(), one, one, out_dtype=torch.float32, use_fast_accum=fast)
            for how, fast in (("exact sums", False), ("fast sums", True))
        }
    return [(how, of.double().cpu().numpy()[:rows, :outputs]) for how, of in made.items()]


def _padded(codes: NDArray[Any]) -> NDArray[Any]:
    rows, width = (-size % MULTIPLE for size in codes.shape)
    return np.pad(codes, ((0, rows + MULTIPLE), (0, width)))


def _note(
    off: dict[str, list[float]], name: str, got: NDArray[Any], wanted: NDArray[np.float64]
) -> None:
    """Keep the norm of the difference, as a share of the norm."""
    difference = np.linalg.norm(got.astype(np.float64) - wanted) / np.linalg.norm(wanted)
    off.setdefault(name, []).append(float(difference))


def main() -> None:
    """Read the arguments; write, or run and print JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("write", "run"))
    parser.add_argument("file", type=Path)
    given = parser.parse_args()
    if given.what == "write":
        write(given.file)
    else:
        print(json.dumps(run(given.file), indent=1))


if __name__ == "__main__":
    main()
