"""Compiled plans of a bundle's graphs: beside its manifest, for one library, version and GPU.

TensorRT's plans run on the GPU and the version that they were compiled with, so they are made on
the device, from the bundle's ONNX. They lie in plans/LIBRARY-VERSION-smSM/ and are bound to the
bundle's hash, as what was measured with it is.
"""

from __future__ import annotations

from pathlib import Path

from pydantic import ValidationError

from autovla_rt.bundle import Bundle, FileRecord, sha256_of
from autovla_rt.config import PLANS_FOLDER, Model
from autovla_rt.errors import BundleError

RECORD = "plans.json"
SUFFIX = ".plan"


class CompiledPlans(Model):
    """What a folder of plans is of.

    Attributes:
        bundle: sha256 of the bundle's manifest.
        library: Python module that compiled them.
        version: Of it.
        sm: Compute capability without the dot.
        device: Name of the GPU, or that there was none.
        cuda: Newest CUDA that its driver ran, as 13.0; None without a GPU.
        workspace: Bytes that tactics could take.
        files: Size and sha256 of each plan.
        layers: Of each graph's network.
        seconds: That compiling each took.
    """

    bundle: str
    library: str
    version: str
    sm: int
    device: str
    cuda: str | None
    workspace: int
    files: dict[str, FileRecord]
    layers: dict[str, int]
    seconds: dict[str, float]


def plans_folder(bundle: Bundle, library: str, version: str, sm: int) -> Path:
    """Return where a bundle's plans for a library and a GPU lie."""
    return bundle.folder / PLANS_FOLDER / f"{library}-{version}-sm{sm}"


def plan_name(graph: str) -> str:
    """Return the name of a graph's plan."""
    return Path(graph).stem + SUFFIX


def graphs_of(bundle: Bundle) -> list[str]:
    """Return the names of a bundle's graphs."""
    return sorted(name for name in bundle.manifest.files if name.endswith(".onnx"))


def read_plans(bundle: Bundle, library: str, version: str, sm: int) -> tuple[Path, CompiledPlans]:
    """Return the folder of a bundle's plans, verified, and its record.

    Raises:
        BundleError: there are none for this library, version and GPU, they are of another bundle,
            or they were altered.
    """
    folder = plans_folder(bundle, library, version, sm)
    wanted = f"plans of {library} {version} for SM {sm / 10:.1f}"
    if not (folder / RECORD).exists():
        others = sorted(path.name for path in folder.parent.glob("*/") if (path / RECORD).exists())
        raise BundleError(
            f"{bundle.folder}: expected {wanted}, got {', '.join(others) or 'none'}.\n"
            f"Compile them on the device: autovla-rt compile --engine {bundle.folder}"
        )
    again = f"Compile them again: autovla-rt compile --engine {bundle.folder} --again"
    try:
        record = CompiledPlans.model_validate_json((folder / RECORD).read_bytes())
    except (OSError, ValidationError) as error:
        raise BundleError(f"{folder / RECORD}: cannot be read ({error}).\n{again}") from error
    if record.bundle != bundle.identity:
        raise BundleError(
            f"{folder}: expected {wanted} of the bundle {bundle.identity[:16]}, got those of "
            f"{record.bundle[:16]}.\n{again}"
        )
    missing = {plan_name(graph) for graph in graphs_of(bundle)} - record.files.keys()
    if missing:
        raise BundleError(f"{folder}: expected {', '.join(sorted(missing))}, got none.\n{again}")
    for name, of in record.files.items():
        path = folder / name
        if not path.exists() or path.stat().st_size != of.size or sha256_of(path) != of.sha256:
            raise BundleError(f"{path}: expected {of.size} bytes as compiled, got others.\n{again}")
    return folder, record
