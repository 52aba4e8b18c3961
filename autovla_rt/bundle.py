"""The engine bundle: a folder with a manifest, verified on loading.

The manifest `engine.json` is sealed and holds the size and sha256 of every other file. Hashes are
checked on the first load and remembered by inode, size and modification time; `verify=True` repeats
the check.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from pathlib import Path
from typing import Any, TypeVar

from pydantic import Field, ValidationError, field_validator

from autovla_rt import __version__
from autovla_rt.config import (
    ActionSpace,
    Camera,
    CompiledPrompt,
    Geometry,
    Model,
    Precision,
    Preprocessing,
    Recipe,
)
from autovla_rt.errors import BundleError, StorageError
from autovla_rt.output_file import write_file

FORMAT_VERSION = 6
MANIFEST = "engine.json"
HASH_CHUNK = 4 << 20

Schema = TypeVar("Schema", bound=Model)


class FileRecord(Model):
    """Size in bytes and sha256 of one bundle file."""

    size: int
    sha256: str


class CheckpointRecord(Model):
    """Where the weights came from."""

    path: str
    sha256: str


class CalibrationUsed(Model):
    """What the quantization of the weights was fitted to.

    Attributes:
        precision: As chosen, with the methods: "int8_sq/int4_awq,text_head=int8".
        scenes: How many.
        scenes_sha256: Of everything that was read of them.
        modelopt: Version of NVIDIA ModelOpt where that searched the scales.
    """

    precision: str
    scenes: int
    scenes_sha256: str
    modelopt: str | None = None


class Quality(Model):
    """How a bundle was judged when it was built (`evaluation.json` has everything).

    Attributes:
        passed: Whether every limit was kept.
        against: sha256 of the manifest of the engine that it was compared with, and its precision.
        scenes: How many.
        limits: By name.
        measured: By name; None where the scenes have no such figure.
    """

    passed: bool
    against: str
    against_precision: Precision
    scenes: int
    limits: dict[str, float]
    measured: dict[str, float | None]


class Manifest(Model):
    """Everything a loader must know before it opens a weight."""

    format_version: int = FORMAT_VERSION
    autovla_rt_version: str = __version__
    name: str
    target: str
    sm: int | None = None
    """Compute capability of the target, without the dot; None without an NVIDIA GPU."""
    backend: str
    dialect: str
    """What its graphs are written in."""
    precision: Precision
    geometry: Geometry
    cameras: tuple[Camera, ...]
    preprocessing: Preprocessing
    actions: ActionSpace
    use_cot: bool
    end_token_ids: tuple[int, ...]
    kv_capacity: int
    checkpoint: CheckpointRecord
    library_versions: dict[str, str]
    notes: tuple[str, ...] = ()
    calibration: CalibrationUsed | None = None
    quality: Quality | None = None
    files: dict[str, FileRecord] = Field(default_factory=dict)
    seal: str = ""
    """`manifest_seal` of the rest."""

    @field_validator("files")
    @classmethod
    def _stay_in_the_folder(cls, files: dict[str, FileRecord]) -> dict[str, FileRecord]:
        for name in files:
            if name in ("", ".", "..", MANIFEST) or not {"/", "\0"}.isdisjoint(name):
                raise ValueError(f"expected names of files beside {MANIFEST}, got {name!r}")
        return files


class Bundle:
    """A verified bundle on disk."""

    def __init__(self, folder: Path, manifest: Manifest, identity: str) -> None:
        self.folder = folder
        self.manifest = manifest
        self.identity = identity
        """sha256 of engine.json, which holds the sha256 of everything else."""

    def path(self, name: str) -> Path:
        """Path of a file that the manifest lists.

        Raises:
            BundleError: the manifest does not list it.
        """
        if name not in self.manifest.files:
            raise BundleError(
                f"{self.folder}: expected the file {name} in the manifest, got only "
                f"{', '.join(sorted(self.manifest.files))}. Build the bundle again."
            )
        return self.folder / name

    def recipe(self) -> Recipe:
        """Prompt and answer format."""
        return self._read("recipe.json", Recipe)

    def prompt(self) -> CompiledPrompt:
        """The compiled prompt."""
        return self._read("prompt.json", CompiledPrompt)

    def _read(self, name: str, schema: type[Schema]) -> Schema:
        path = self.path(name)
        return _validated(schema, path.read_bytes(), path)


def load_bundle(folder: Path, *, verify: bool = False) -> Bundle:
    """Open a bundle and verify it.

    Raises:
        BundleError: no manifest, another format version, a file missing, truncated or altered.
    """
    manifest_path = folder / MANIFEST
    try:
        raw = manifest_path.read_bytes()
    except OSError as error:
        raise BundleError(
            f"{folder}: expected an engine bundle with {MANIFEST}, got: {error.strerror}.\n"
            "Build one with `make engine`, or name the folder that `autovla-rt build` wrote."
        ) from error
    manifest = _parse(manifest_path, raw)
    identity = hashlib.sha256(raw).hexdigest()
    _check_files(folder, manifest, identity, verify)
    return Bundle(folder, manifest, identity)


def manifest_seal(content: dict[str, Any]) -> str:
    """sha256 of a manifest's content without its seal, as JSON with sorted keys and no spaces."""
    rest = {key: value for key, value in content.items() if key != "seal"}
    return hashlib.sha256(
        json.dumps(rest, sort_keys=True, separators=(",", ":")).encode()
    ).hexdigest()


def manifest_identity(folder: Path) -> str | None:
    """sha256 of a folder's manifest now; None where there is none."""
    try:
        return hashlib.sha256((folder / MANIFEST).read_bytes()).hexdigest()
    except OSError:
        return None


def _parse(path: Path, raw: bytes) -> Manifest:
    try:
        content = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise BundleError(
            f"{path}: expected a manifest in JSON, got something else ({error}).\n"
            "The file is damaged: copy or build the bundle again."
        ) from None
    version = content.get("format_version") if isinstance(content, dict) else None
    if not isinstance(version, int):
        raise BundleError(
            f"{path}: expected a JSON object with a format_version, got none.\n"
            "This is no manifest of autovla-rt, or a damaged one: copy or build the bundle again."
        )
    if version != FORMAT_VERSION:
        raise BundleError(
            f"{path}: expected format version {FORMAT_VERSION} (autovla-rt {__version__}), got "
            f"{version} (written by autovla-rt {content.get('autovla_rt_version', 'unknown')}).\n"
            "Install that version of autovla-rt, or build the bundle again with this one."
        )
    manifest = _validated(Manifest, raw, path)
    if (seal := manifest_seal(content)) != manifest.seal:
        raise BundleError(
            f"{path}: expected the seal {manifest.seal or '(none)'}, got {seal}.\n"
            "The manifest was altered or damaged: copy or build the bundle again."
        )
    return manifest


def _validated(schema: type[Schema], raw: bytes, path: Path) -> Schema:
    try:
        return schema.model_validate_json(raw)
    except ValidationError as error:
        faults = "\n".join(
            f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors()
        )
        raise BundleError(
            f"{path}: does not fit its schema:\n{faults}\n"
            "The file is damaged or was edited: copy or build the bundle again."
        ) from None


def _check_files(folder: Path, manifest: Manifest, identity: str, verify: bool) -> None:
    """Check sizes always, hashes unless the same inodes were checked before."""
    stamps: dict[str, list[int]] = {}
    for name, record in manifest.files.items():
        try:
            status = (folder / name).stat()
        except OSError as error:
            raise BundleError(
                f"{folder / name}: expected {record.size} bytes, got: {error.strerror}. "
                "The bundle is incomplete: copy or build it again."
            ) from error
        if status.st_size != record.size:
            raise BundleError(
                f"{folder / name}: expected {record.size} bytes, got {status.st_size}. "
                "The file was truncated or replaced: copy or build the bundle again."
            )
        stamps[name] = [status.st_ino, status.st_size, status.st_mtime_ns]
    memory = _memory_path(folder, identity)
    if not verify and _remembered(memory) == stamps:
        return
    for name, record in manifest.files.items():
        digest = _digest(folder / name)
        if digest != record.sha256:
            raise BundleError(
                f"{folder / name}: expected sha256 {record.sha256}, got {digest}. "
                "The file was altered or damaged: copy or build the bundle again."
            )
    # A missing, read-only or full home directory only costs the next load its time.
    with contextlib.suppress(OSError, StorageError):
        memory.parent.mkdir(parents=True, exist_ok=True)
        write_file(memory, json.dumps(stamps).encode())


def _memory_path(folder: Path, identity: str) -> Path:
    """Copies of a bundle are remembered apart: inodes mean nothing on another file system."""
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")  # noqa: PTH111 never raises
    place = hashlib.sha256(os.fsencode(folder.resolve())).hexdigest()
    return Path(cache) / "autovla-rt" / "verified" / f"{identity[:32]}-{place[:32]}.json"


def _digest(path: Path) -> str:
    try:
        return sha256_of(path)
    except OSError as error:
        raise BundleError(
            f"{path}: expected a readable file, got: {error.strerror}. "
            "Check its permissions and the disk, or copy the bundle again."
        ) from error


def _remembered(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return None


def sha256_of(path: Path) -> str:
    """Stream a file's sha256."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(HASH_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()
