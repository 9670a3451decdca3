"""The machine a measurement ran on, as facts to store beside its numbers."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import psutil

# Instruction sets that decide how fast a matrix product in float32 or bfloat16 can be.
_FLAGS = ("avx2", "fma", "avx512f", "avx512_bf16", "amx_tile", "amx_bf16", "asimd", "bf16", "sve")


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineFacts:
    """What of a machine a reader needs to place its numbers; no name or path of it.

    Attributes:
        cpu: model name as the system gives it.
        num_cores: physical cores.
        num_threads: logical cores that this process may use.
        flags: for each instruction set that matters, whether the CPU has it.
        memory_gib: main memory.
        system: kernel name and architecture.
        python, jax, numpy: versions.
    """

    cpu: str
    num_cores: int
    num_threads: int
    flags: dict[str, bool]
    memory_gib: float
    system: str
    python: str
    jax: str
    numpy: str


def machine_facts() -> MachineFacts:
    """The facts of this machine; jax's version is looked up without importing it."""
    cpu_info = _cpu_info()
    flags = cpu_info.get("flags", cpu_info.get("Features", "")).split()
    return MachineFacts(
        cpu=cpu_info.get("model name", platform.processor() or platform.machine()),
        num_cores=psutil.cpu_count(logical=False) or 0,
        num_threads=_num_usable_threads(),
        flags={name: name in flags for name in _FLAGS},
        memory_gib=round(psutil.virtual_memory().total / 2**30, 1),
        system=f"{platform.system()} {platform.machine()}",
        python=platform.python_version(),
        jax=version("jax"),
        numpy=version("numpy"),
    )


def load_average() -> float:
    """Runnable processes, averaged over the last minute; above 0.5 at the start, others work."""
    return round(os.getloadavg()[0], 2)


def _num_usable_threads() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 0


def _cpu_info() -> dict[str, str]:
    """The first processor's entries of /proc/cpuinfo; empty where the system has none."""
    path = Path("/proc/cpuinfo")
    if not path.exists():
        return {}
    first = path.read_text(encoding="utf-8").split("\n\n")[0]
    pairs = (line.partition(":") for line in first.splitlines())
    return {name.strip(): value.strip() for name, _, value in pairs}
