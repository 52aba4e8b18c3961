"""What a kernel was compiled to, read from its machine code with NVIDIA's disassembler."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

_INSTRUCTION = re.compile(r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)", re.M)
_USAGE = re.compile(r"REG:(\d+) STACK:(\d+)")

_COUNTED = re.compile(r"LD|ST|[A-Z]*MMA")
"""Loads, stores and matrix instructions (IMMA: int8, HMMA: fp16)."""

_LOCAL = re.compile(r"LDL|STL")


@dataclass(frozen=True)
class MachineCode:
    """Resources of a thread, and how often instructions occur.

    Attributes:
        registers: Of a thread.
        stack_bytes: Of a thread.
        instructions: Loads, stores and matrix instructions -> how often each occurs.
    """

    registers: int
    stack_bytes: int
    instructions: dict[str, int]

    @property
    def spills(self) -> int:
        """Loads and stores of local memory."""
        return sum(count for name, count in self.instructions.items() if _LOCAL.match(name))


def disassemble(cubin: bytes, tools: Path) -> MachineCode:
    """Read machine code; `tools` holds cuobjdump and nvdisasm.

    Raises:
        subprocess.CalledProcessError: one of them does not read it.
    """
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        usage = _run(tools / "cuobjdump", "--dump-resource-usage", file.name)
        listing = _run(tools / "nvdisasm", "-c", file.name)
    ((registers, stack),) = _USAGE.findall(usage)
    counts = Counter(name for name in _INSTRUCTION.findall(listing) if _COUNTED.match(name))
    return MachineCode(int(registers), int(stack), dict(sorted(counts.items())))


def _run(*command: str | Path) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout
