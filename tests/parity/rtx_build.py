"""Run by the environment of TensorRT for RTX: compiles graphs and says what came of each.

    python rtx_build.py REPOSITORY SM GRAPH.onnx... > RESULTS.json

RESULTS maps each path to {"layers", "bytes", "seconds", "compiled"} or {"error"}.
"""

import json
import sys
import time
from pathlib import Path


def main():
    """Compile every graph."""
    repository, sm, *graphs = sys.argv[1:]
    sys.path.insert(0, repository)
    import tensorrt_rtx

    from autovla_rt.errors import TargetError
    from autovla_rt.export.emit.tensorrt import Sizes, build_engine_plan

    dimensions = {"k": Sizes(1, 10, 512), "m": Sizes(1, 10, 16), "batch": Sizes(1, 6, 6)}
    results = {}
    for graph in graphs:
        start = time.perf_counter()
        try:
            made = build_engine_plan(tensorrt_rtx, Path(graph), int(sm), [dimensions])
        except TargetError as error:
            results[graph] = {"error": str(error)}
        else:
            seconds = round(time.perf_counter() - start, 2)
            results[graph] = {
                "layers": made.layers,
                "bytes": len(made.plan),
                "seconds": seconds,
                "compiled": made.compiled,
            }
    json.dump(results, sys.stdout)


if __name__ == "__main__":
    main()
