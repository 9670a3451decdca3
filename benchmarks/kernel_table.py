"""Every kernel that the project ships, compiled for GPUs that aren't there: ``--help``.

Needs XLA's CUDA compiler (``pip install "fastgen-jax[plan]"``), no GPU. Nothing is run: registers,
spills, shared memory and instructions are the compilers' facts, occupancy follows from them, and
bytes in flight and cycles are estimates. ``docs/kernels.md`` says how to read the table.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from tqdm import tqdm

from benchmarks.kernel_compile import OPERATIONS, Job, compile_jobs
from benchmarks.kernel_evidence import KernelRow, read_row
from benchmarks.kernel_limits import LOADED_LATENCY
from fastgen_jax.errors import ConfigError
from fastgen_jax.plan.deviceless import find_compiler
from fastgen_jax.plan.gpus import find_gpu
from pallas_kernels.kv_write.arg_specs import kv_write_specs
from pallas_kernels.ragged_paged_attention.arg_specs import attention_specs

PACKAGES = (
    "jax",
    "jaxlib",
    "jax-cuda13-plugin",
    "nvidia-cuda-nvcc",
    "nvidia-nvvm",
    "nvidia-cuda-nvdisasm",
)
KERNEL_SOURCES = Path(__file__).parents[1] / "pallas_kernels"
TITLES = {
    "ragged_paged_attention": "attention",
    "kv_write": "write of keys and values",
}


def list_jobs(gpus: Sequence[str], operations: Sequence[str], words: Sequence[str]) -> list[Job]:
    """The compilations that are asked for; ``words`` are parts of names of specs.

    Raises:
        ConfigError: nothing is.
    """
    names = {
        "ragged_paged_attention": [spec.name for spec in attention_specs()],
        "kv_write": [spec.name for spec in kv_write_specs()],
    }
    jobs = [
        Job(gpu=gpu, operation=operation, spec=name)
        for gpu in gpus
        for operation in operations
        for name in names[operation]
        if not words or any(word in name for word in words)
    ]
    if not jobs:
        raise ConfigError(
            "no spec has that in its name",
            field="spec",
            value=", ".join(words),
            remedy="use a part of one of: " + "; ".join(n for o in operations for n in names[o]),
        )
    return jobs


def table_rows(jobs: list[Job], compiler: Path, *, timeout: float = 600) -> Iterator[KernelRow]:
    """A row for each job, in turn."""
    for job, compiled, folder in compile_jobs(jobs, compiler, timeout=timeout):
        try:
            yield read_row(job, compiled, folder, compiler)
        except ValueError as error:
            yield KernelRow(job=job, compiled=replace(compiled, error=str(error)))


def faults(row: KernelRow) -> list[str]:
    """What is wrong with a kernel, as sentences; none where it is as it should be."""
    if row.compiled.error is not None:
        return [f"did not compile: {row.compiled.error}"]
    found = []
    if row.spilled:
        found.append(f"spills {row.spilled} bytes")
    shared = (row.static_shared or 0) + (row.dynamic_shared or 0)
    if row.shared_limit is not None and shared > row.shared_limit:
        found.append(f"takes {shared} bytes of shared memory, the limit is {row.shared_limit}")
    if row.kernel is None:
        return found
    if not row.blocks_per_sm:
        found.append("no thread block fits a multiprocessor")
    instructions = row.instructions or {}
    found += [
        f"has no {name} instruction"
        for name in wanted_instructions(row)
        if not any(instructions.get(choice) for choice in name.split(" or "))
    ]
    if row.in_flight is not None and row.in_flight < (row.needed_in_flight or 0):
        found.append(f"has {row.in_flight} bytes in flight, needs {row.needed_in_flight:.0f}")
    return found


def wanted_instructions(row: KernelRow) -> tuple[str, ...]:
    """Tensor-core and copy instructions that a kernel of its implementation must have."""
    return {
        "HopperConfig": ("HGMMA", "UTMALDG", "UTMASTG"),
        "TritonConfig": ("HMMA or HGMMA", "LDGSTS"),
        "KvWriteMosaic": ("UTMALDG or UBLKCP", "UTMASTG or UBLKCP"),
    }.get(row.compiled.implementation, ())


def print_table(rows: Iterable[KernelRow], console: Console) -> None:
    """The rows as a table for each GPU and operation, and a line for everything that is wrong."""
    rows = list(rows)
    for gpu, operation in dict.fromkeys((row.job.gpu, row.job.operation) for row in rows):
        table = Table(title=f"{TITLES[operation]} on {gpu}", title_justify="left")
        is_attention = operation == "ragged_paged_attention"
        for name in _COLUMNS if is_attention else _COLUMNS[: -len(_ESTIMATES)]:
            table.add_column(name, justify="left" if name in ("spec", "sizes") else "right")
        for row in rows:
            if (row.job.gpu, row.job.operation) == (gpu, operation) and not row.compiled.error:
                table.add_row(*_cells(row)[: len(table.columns)])
        console.print(table)
    for row in rows:
        for fault in faults(row):
            console.print(f"{row.job.gpu}, {row.job.operation}, {row.job.spec}: {fault}")


_ESTIMATES = ("in flight KiB", "issue", "mma", "memory", "latency", "slots")
_COLUMNS = (
    "spec",
    "sizes",
    "registers",
    "spills",
    "shared",
    "threads",
    "blocks/SM",
    "warps/SM",
    "instructions",
    *_ESTIMATES,
)


def _cells(row: KernelRow) -> list[str]:
    sizes = {name: value for name, value in row.compiled.config.items() if name != "splits"}
    splits = row.compiled.config.get("splits")
    words = [f"{name.replace('num_', '')} {value}" for name, value in sizes.items()]
    if splits:
        words.append(f"splits {splits['max_splits']}/{splits['max_tile_splits']}")
    if row.kernel is None:
        return [row.job.spec, "left to XLA"] + [""] * (len(_COLUMNS) - 2)
    cells = [
        row.job.spec,
        ", ".join(words),
        str(row.registers),
        str(row.spilled),
        f"{row.static_shared}+{row.dynamic_shared}",
        str(row.threads),
        f"{row.blocks_per_sm} ({row.occupancy_limit})",
        str(row.warps_per_sm),
        ", ".join(f"{count} {name}" for name, count in (row.instructions or {}).items()),
    ]
    if row.turn is not None and row.in_flight is not None and row.needed_in_flight is not None:
        cells += [
            f"{row.in_flight / 1024:.0f} of {row.needed_in_flight / 1024:.1f}",
            str(row.turn.issue),
            f"{row.turn.products:.0f}",
            f"{row.turn.memory:.0f}",
            f"{row.turn.latency_share:.2f}",
            f"{row.turn.slot_share:.2f}",
        ]
    return cells


class ResultFile:
    """The rows as a JSON file, written after every row.

    Rows of an earlier run stay where they aren't compiled again and the packages are the same, so
    that a table can be made in pieces. Each row has a digest of its operation's sources.
    """

    def __init__(self, path: Path, gpus: Sequence[str]) -> None:
        """Take over what is at ``path``, if anything is."""
        self._path = path
        self._versions = {name: _version(name) for name in PACKAGES}
        self._rows: dict[tuple[str, ...], dict[str, Any]] = {}
        self._gpus = {name: _gpu_facts(name) for name in gpus}
        if path.is_file():
            old = json.loads(path.read_text(encoding="utf-8"))
            if old["versions"] == self._versions:
                self._gpus = old["compiled_for"] | self._gpus
                self._rows = {tuple(row["job"].values()): row for row in old["rows"]}

    def add(self, row: KernelRow) -> None:
        """A row more, in place of that of the same job."""
        data = asdict(row) | {"faults": faults(row), "sources": sources_digest(row.job.operation)}
        self._rows[tuple(data["job"].values())] = data
        everything = {
            "compiled_for": self._gpus,
            "run_on_a_gpu": False,
            "versions": self._versions,
            "loaded_latency_seconds": LOADED_LATENCY,
            "estimates": ["in_flight", "needed_in_flight", "turn"],
            "rows": [self._rows[key] for key in sorted(self._rows)],
        }
        self._path.write_text(json.dumps(everything, indent=1) + "\n", encoding="utf-8")


def sources_digest(operation: str, folder: Path = KERNEL_SOURCES) -> str:
    """What changes when a source of the operation does; lists of shapes and tuned sizes aside."""
    digest = hashlib.sha256()
    for path in sorted((folder / operation).glob("*.py")):
        if path.name not in ("arg_specs.py", "tuned.py"):
            digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def _gpu_facts(name: str) -> dict[str, float]:
    gpu = find_gpu(name)
    return {
        "num_sms": gpu.num_sms,
        "bandwidth": gpu.bandwidth,
        "clock_of_cycles": gpu.tensor_clock,
        "shared_per_block": gpu.shared_per_block,
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:  # the compiler may be installed apart from this environment
        return None


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; 1 where something is wrong with a kernel, 2 where nothing could be compiled."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.kernel_table", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--gpu", action="append", help="h100, h200, a100, ...; may be repeated")
    parser.add_argument("--operation", action="append", choices=OPERATIONS)
    parser.add_argument("--spec", action="append", help="part of a name; may be repeated")
    parser.add_argument("--json", type=Path, help="file for the rows; old ones stay")
    parser.add_argument("--timeout", type=float, default=600, help="seconds for one compilation")
    given = parser.parse_args(arguments)
    gpus = [name.lower() for name in given.gpu or ["h100", "a100"]]
    try:
        for name in gpus:
            find_gpu(name)
        jobs = list_jobs(gpus, given.operation or OPERATIONS, given.spec or ())
        compiler = find_compiler()
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 2
    file = ResultFile(given.json, gpus) if given.json else None
    rows = []
    made = table_rows(jobs, compiler, timeout=given.timeout)
    for row in tqdm(made, total=len(jobs), desc="compiling", unit="spec"):
        rows.append(row)
        if file is not None:
            file.add(row)
    console = Console(width=None if sys.stdout.isatty() else 240)
    print_table(rows, console)
    bad = sum(bool(faults(row)) for row in rows)
    console.print(f"{len(rows)} compiled, {bad} with something wrong")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
