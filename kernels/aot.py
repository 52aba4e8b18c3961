"""Compile the GPU kernels ahead of time, so that the device needs neither Triton nor torch.

    python -m autovla_rt.kernels.aot OUT --sm 87 110    # OUT/sm_87/cubins.json, OUT/sm_110/...

Needs Triton (pip install 'autovla-rt[kernels]') and no GPU.
"""

from __future__ import annotations

import argparse
import hashlib
import re
from collections.abc import Iterable
from importlib import import_module
from pathlib import Path
from typing import Any

from autovla_rt.cubin import INDEX_FILE, WARP_SIZE, Argument, Cubin, CubinIndex
from autovla_rt.errors import DependencyError, TargetError
from autovla_rt.kernels.sass import disassemble
from autovla_rt.kernels.variants import Variant, variants
from autovla_rt.output_file import make_folder, write_file

ARCHITECTURES = {
    87: "Orin",
    110: "Thor",
    86: "GeForce RTX 30, A10",
    89: "RTX 40, L4",
    90: "H100",
    120: "RTX 50",
}
"""Compute capability without the dot -> devices."""

_TYPES = {
    "*u8": "uint8",
    "*i8": "int8",
    "*i32": "int32",
    "*i64": "int64",
    "*fp16": "float16",
    "*fp32": "float32",
    "i32": "int32",
}
_ALIGNMENT = 16
"""Of addresses and of a variant's aligned numbers: what a thread loads at once."""

_ENTRY = re.compile(r"\.visible \.entry \w+\((.*?)\)", re.S)
_PARAMETER = re.compile(r"\.param \.(\w+)")


def compile_kernels(folder: Path, sm: int, of: Iterable[Variant]) -> CubinIndex:
    """Compile kernels for one compute capability (without the dot) into a folder.

    Raises:
        DependencyError: Triton is not installed.
        StorageError: the folder cannot be written.
        TargetError: Triton cannot compile for `sm`, or a kernel would need more than its arguments.
    """
    try:
        import triton
    except ModuleNotFoundError as error:
        raise DependencyError(
            "Kernels are compiled by Triton, which is not installed: "
            "pip install 'autovla-rt[kernels]'"
        ) from error
    if sm not in ARCHITECTURES:
        known = ", ".join(f"{number} ({device})" for number, device in ARCHITECTURES.items())
        raise TargetError(f"compute capability {sm}: kernels are compiled for {known}.")
    make_folder(folder)
    cubins = []
    for variant in of:
        cubin, code = _compile(variant, sm)
        write_file(folder / cubin.file, code)
        cubins.append(cubin)
    index = CubinIndex(sm=sm, compiler=f"triton {triton.__version__}", cubins=tuple(cubins))
    write_file(folder / INDEX_FILE, index.model_dump_json(indent=1).encode())
    return index


def _compile(variant: Variant, sm: int) -> tuple[Cubin, bytes]:
    from triton import compile as compile_source
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    function = getattr(import_module(f"autovla_rt.kernels.triton_{variant.kernel}"), variant.kernel)
    places = {name: place for place, name in enumerate(function.arg_names)}
    arguments = tuple(_argument(variant, name, kind) for name, kind in variant.arguments.items())
    source = ASTSource(
        function,
        signature={**variant.arguments, **dict.fromkeys(variant.constants, "constexpr")},
        constexprs={(places[name],): value for name, value in variant.constants.items()},
        attrs={(places[of.name],): [["tt.divisibility", of.multiple]] for of in arguments},
    )
    compiled = compile_source(
        source,
        target=GPUTarget("cuda", sm, WARP_SIZE),
        options={
            "num_warps": variant.warps,
            "num_stages": variant.stages,
            "enable_fp_fusion": True,
        },
    )
    code = bytes(compiled.asm["cubin"])
    machine = disassemble(code, _tools())
    cubin = Cubin(
        name=variant.name,
        entry=compiled.metadata.name,
        sha256=hashlib.sha256(code).hexdigest(),
        warps=compiled.metadata.num_warps,
        shared_bytes=compiled.metadata.shared,
        arguments=arguments,
        hidden_pointers=_hidden_pointers(compiled, arguments),
        constants=variant.constants,
        registers=machine.registers,
        stack_bytes=machine.stack_bytes,
        spills=machine.spills,
        instructions=machine.instructions,
    )
    return cubin, code


def _argument(variant: Variant, name: str, kind: str) -> Argument:
    pointer = kind.startswith("*")
    return Argument(
        name=name,
        kind="pointer" if pointer else "int32",
        type=_TYPES[kind],
        multiple=_ALIGNMENT if pointer or name in variant.aligned else 1,
    )


def _hidden_pointers(compiled: Any, arguments: tuple[Argument, ...]) -> int:
    """Count the pointers that Triton puts behind the arguments, which must be of no use."""
    (given,) = _ENTRY.findall(compiled.asm["ptx"])
    kinds = _PARAMETER.findall(given)
    wanted = [{"pointer": "u64", "int32": "u32"}[argument.kind] for argument in arguments]
    hidden = kinds[len(wanted) :]
    scratch = compiled.metadata.global_scratch_size + compiled.metadata.profile_scratch_size
    if kinds[: len(wanted)] != wanted or set(hidden) - {"u64"} or scratch:
        raise TargetError(
            f"kernel {compiled.metadata.name}: expected the arguments {wanted} and pointers of no "
            f"use, got {kinds} and {scratch} bytes of scratch memory.\n"
            "This version launches no such kernel: compile with the Triton of constraints.txt."
        )
    return len(hidden)


def _tools() -> Path:
    """Return the folder of the disassemblers that Triton brings along."""
    import triton

    return Path(triton.__file__).parent / "backends" / "nvidia" / "bin"


def main() -> None:
    """Compile for the architectures asked for and print what came of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--sm", type=int, nargs="+", default=list(ARCHITECTURES))
    parser.add_argument("--hidden-size", type=int, default=2048)
    given = parser.parse_args()
    for sm in given.sm:
        index = compile_kernels(given.out / f"sm_{sm}", sm, variants(hidden_size=given.hidden_size))
        for cubin in index.cubins:
            print(
                f"sm_{sm} {cubin.name}: {cubin.registers} registers, {cubin.shared_bytes} bytes "
                f"shared, {cubin.stack_bytes} bytes stack, {cubin.spills} spills"
            )


if __name__ == "__main__":
    main()
