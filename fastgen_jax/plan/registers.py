"""Registers, spills and shared memory of our kernels, from the compilers' own reports."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path

_ENTRY = re.compile(
    r"Compiling entry function '(?P<name>[^']+)'.*?"
    r"(?P<spills>\d+) bytes spill stores.*?Used (?P<registers>\d+) registers",
    re.DOTALL,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelRegisters:
    """One kernel as the assembler saw it.

    Attributes:
        name: of its entry point.
        registers: of a thread.
        spilled: bytes of a thread that went to memory for want of registers; should be 0.
        shared: bytes of a block's shared memory; None where no report says.
    """

    name: str
    registers: int
    spilled: int
    shared: int | None = None


def read_report(report: str) -> tuple[KernelRegisters, ...]:
    """The kernels in what ``ptxas -v`` printed."""
    return tuple(
        KernelRegisters(
            name=found["name"], registers=int(found["registers"]), spilled=int(found["spills"])
        )
        for found in _ENTRY.finditer(report)
    )


def kernel_registers(
    directory: Path, names: Collection[str], arch: str, compiler: Path
) -> tuple[KernelRegisters, ...]:
    """Our kernels in the directory of a compilation, each once.

    Mosaic leaves the assembler's reports there. For Triton the assembler is run on the kernel's
    PTX; kernels that XLA made itself are left out. ``compiler`` is the folder of the packages.
    """
    found: dict[str, KernelRegisters] = {}
    for path in sorted(directory.glob("*.ptxas")):
        resources = path.with_suffix(".resources.txt")
        text = resources.read_text(errors="replace") if resources.is_file() else ""
        shared = re.search(r"smem_scratch_bytes=(\d+)", text)
        for item in read_report(path.read_text(errors="replace")):
            found[item.name] = replace(item, shared=int(shared.group(1)) if shared else None)
    launched = "\n".join(
        path.read_text(errors="replace") for path in directory.glob("*thunk_sequence.txt")
    )
    for path in sorted(directory.glob("*.ptx")):
        entry = re.search(r"\.entry (\w+)", path.read_text(errors="replace"))
        if entry is None or entry.group(1) in found or path.with_suffix(".ptxas").exists():
            continue
        name = entry.group(1)
        if any(name == ours or re.fullmatch(rf"{re.escape(ours)}_\d+", name) for ours in names):
            shared = re.search(rf" {name} .*shared_memory: (\d+) bytes", launched)
            for item in _assemble(path, arch, compiler):
                found[name] = replace(item, shared=int(shared.group(1)) if shared else None)
    return tuple(found.values())


def _assemble(path: Path, arch: str, compiler: Path) -> tuple[KernelRegisters, ...]:
    ptxas = next(compiler.glob("nvidia/*/bin/ptxas"), None)
    if ptxas is None:
        return ()
    done = subprocess.run(
        [str(ptxas), "-v", f"-arch={arch}", "-o", "/dev/null", str(path)],
        capture_output=True,
        text=True,
        check=False,
    )
    return read_report(done.stderr)
