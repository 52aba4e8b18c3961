"""Compiled GPU kernels in a folder: what `kernels/aot.py` writes and the runtime launches.

One folder holds the kernels of one compute capability, and `cubins.json`, which says of each how it
is launched and what it was compiled to.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Final, Literal

from pydantic import ValidationError

from autovla_rt.config import Model
from autovla_rt.errors import BundleError

INDEX_FILE = "cubins.json"
SCHEMA_VERSION: Final = 1
WARP_SIZE = 32


class Argument(Model):
    """One argument of a kernel.

    Attributes:
        name: Of the argument.
        kind: A device address, or a number.
        type: NumPy's name of the number's type, or of what lies at the address.
        multiple: What the machine code relies on: the value is a multiple of it.
    """

    name: str
    kind: Literal["pointer", "int32"]
    type: str
    multiple: int


class Cubin(Model):
    """One compiled kernel.

    Attributes:
        name: Of the variant, and of its file.
        entry: Of the function in it.
        sha256: Of the file.
        warps: Of a program, 32 threads each.
        shared_bytes: Of a program, given at launch.
        arguments: In order.
        hidden_pointers: Triton's own (scratch memory), behind the others; null, since none is used.
        constants: What the kernel was specialised for.
        registers: Of a thread.
        stack_bytes: Of a thread, in local memory.
        spills: Loads and stores of local memory in the machine code.
        instructions: How often memory and matrix instructions occur in the machine code.
    """

    name: str
    entry: str
    sha256: str
    warps: int
    shared_bytes: int
    arguments: tuple[Argument, ...]
    hidden_pointers: int
    constants: dict[str, int]
    registers: int
    stack_bytes: int
    spills: int
    instructions: dict[str, int]

    @property
    def file(self) -> str:
        """Name of the file beside the index."""
        return f"{self.name}.cubin"

    @property
    def threads(self) -> int:
        """Threads of a program."""
        return self.warps * WARP_SIZE


class CubinIndex(Model):
    """The kernels of one compute capability (`sm`, without the dot)."""

    schema_version: Literal[1] = SCHEMA_VERSION
    sm: int
    compiler: str
    cubins: tuple[Cubin, ...]

    def find(self, name: str) -> Cubin:
        """Return a kernel by name.

        Raises:
            BundleError: there is none.
        """
        for cubin in self.cubins:
            if cubin.name == name:
                return cubin
        raise BundleError(
            f"kernel {name!r}: expected one of {', '.join(cubin.name for cubin in self.cubins)}.\n"
            "Compile the kernels again with this version: python -m autovla_rt.kernels.aot"
        )


def read_index(folder: Path) -> CubinIndex:
    """Read a folder's index.

    Raises:
        BundleError: it is missing, or not an index of this version.
    """
    path = folder / INDEX_FILE
    try:
        return CubinIndex.model_validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        raise BundleError(
            f"{path}: expected an index of compiled kernels, version {SCHEMA_VERSION}: {error}.\n"
            "Compile them with python -m autovla_rt.kernels.aot"
        ) from error


def read_cubin(folder: Path, cubin: Cubin) -> bytes:
    """Read the machine code of a kernel.

    Raises:
        BundleError: its file is missing or altered.
    """
    path = folder / cubin.file
    try:
        content = path.read_bytes()
    except OSError as error:
        raise BundleError(f"{path}: cannot be read: {error.strerror}. Compile it again.") from error
    found = hashlib.sha256(content).hexdigest()
    if found != cubin.sha256:
        raise BundleError(
            f"{path}: expected sha256 {cubin.sha256}, got {found}.\nThe file was altered or cut: "
            "copy it again, or compile it again."
        )
    return content
